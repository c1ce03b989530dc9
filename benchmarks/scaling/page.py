"""Sections of ``strong`` and ``weak``: what more ranks bring, and what stands in the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from benchmarks.harness.phase_runs import points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Text, slug
from benchmarks.harness.statistics import Estimate
from benchmarks.scaling import page_figures as figures
from benchmarks.scaling import page_findings as findings
from benchmarks.scaling import page_tables as tables
from benchmarks.scaling.series import Network, networks

TITLES = {"strong": "Strong scaling", "weak": "Weak scaling"}
WHAT = {
    "strong": "The same work on more and more ranks: N ranks divide the steps or the minibatch of "
    "one. Ideal: 1/N of the time of one rank.",
    "weak": "The same work per rank on more and more ranks: N ranks do N times the work of one "
    "between two messages. Ideal: a rank takes as long for a sample gradient as alone.",
}
HOW = (
    "An iteration's time is that of its slowest rank, evaluation left out. Points are medians over "
    "outer iterations, bars 95 percent intervals; points are not joined, as nothing lies between."
)
OVERSUBSCRIBED = (
    "† oversubscribed: more ranks than cores. Wall times mean little there; no speedup or "
    "efficiency is drawn from them, CPU seconds stand beside."
)


def section(
    kind: str, rows: Sequence[Row], predictions: Sequence[Row], split: Sequence[Row] = ()
) -> Section | None:
    """The section of one kind; None where it has no rows.

    Args:
        kind: "strong" or "weak". predictions: of the cost model. split: of runs whose clock was on
            and off in turn.
    """
    if not rows:
        return None
    made, missing = runs(rows)
    whole = Section(TITLES[kind], [Text(f"{WHAT[kind]} {HOW}")])
    if missing:
        left = f"{missing} runs are" if missing > 1 else "1 run is"
        text = f"{left} left out: rows of ranks or phases are missing; was it interrupted?"
        whole.parts.append(Finding(text, warning=True))
    whole.parts += [findings.clock_finding(row) for row in split]
    found = networks(points(made), kind)
    for network in found:
        below = Section(f"{TITLES[kind]}: {network.title}", _parts(network, kind, predictions))
        whole.below.append(below)
    if len(found) == 1:  # no heading for one alone
        whole.parts += [Text(f"{found[0].title}."), *whole.below.pop().parts]
    return whole


def _parts(network: Network, kind: str, predictions: Sequence[Row]) -> list[Part]:
    name = slug(f"{kind} {network.data} {network.hidden}")
    models = modelled(network, kind, predictions)
    several = len({point.ranks for point in network.points}) > 1
    parts: list[Part] = [
        Picture(
            f"{name}-time",
            "Time against ranks",
            "Dashed: ideal, from one rank of the same method."
            + (" Bars, dotted between: the cost model." if models else "")
            + (" Hollow: oversubscribed." if _marked(network) else ""),
            f"Scatter plot, both axes logarithmic: time against number of ranks for "
            f"{_methods(network)}. Values are in the table below.",
            figures.time(network, kind, models),
            tuple(findings.time_findings(network, kind, models)),
        )
    ]
    if several:
        found = tuple(findings.efficiency_findings(network))
        parts.append(
            Picture(
                f"{name}-efficiency",
                "Parallel efficiency",
                "Quotient of the medians at one rank and at N. The axis need not begin at 0.",
                f"Scatter plot: parallel efficiency in percent against number of ranks for "
                f"{_methods(network)}. Values are in the table below.",
                figures.efficiency(network),
                found,
            )
        )
    parts += [
        Picture(
            f"{name}-phases",
            "Where the time goes",
            "Mean over ranks and iterations, by phase; evaluation, outlined, is not part of the "
            "time. Beside a bar: communication (allreduce and broadcast) + wait, in percent."
            + (" †: oversubscribed." if _marked(network) else ""),
            f"Stacked bars, one per method and number of ranks: time by phase for "
            f"{_methods(network)}. Shares are in the table of phases below.",
            figures.phases(network, kind),
            tuple(findings.phase_findings(network)),
        ),
        Picture(
            f"{name}-spread",
            "Spread of iteration times",
            "Boxes: quartiles and median; whiskers: 5 to 95 percent; dots: single outer iterations "
            "(at most 60 a box). An outer iteration is up to the method, from one gradient step to "
            "some forty.",
            f"Box plots, logarithmic axis: times of outer iterations for {_methods(network)}.",
            figures.spread(network),
            tuple(findings.spread_findings(network)),
        ),
    ]
    for series in network.series:
        parts += [Finding(text) for text in findings.hindrances(series)]
    parts += [tables.main_table(network), tables.phase_table(network)]
    lost = tables.lost_table(network)
    if lost is not None:
        parts.append(lost)
    if _marked(network):
        parts.append(Text(OVERSUBSCRIBED))
    return parts


def _marked(network: Network) -> bool:
    return any(point.oversubscribed for point in network.points)


def _methods(network: Network) -> str:
    return ", ".join(series.label for series in network.series)


def modelled(network: Network, kind: str, predictions: Sequence[Row]) -> dict[int, Estimate]:
    """What the cost model says of each point, as it is plotted, by id() of the point."""

    def key(settings: Row) -> str:
        kept = {k: v for k, v in settings.items() if k not in ("rank", "phase", "repetition")}
        return json.dumps(kept, sort_keys=True)

    by = {key(row["settings"]["of"]): float(row["predicted"]) for row in predictions}
    found = {}
    for point in network.points:
        iteration = by.get(key(point.settings))
        if iteration is not None:
            run = point.runs[0]
            work = run.samples if kind == "strong" else point.ranks
            found[id(point)] = Estimate(iteration * work / run.per_evaluation)
    return found


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = (
        section("strong", rows["strong"], rows["prediction"], rows["split"]),
        section("weak", rows["weak"], rows["prediction"]),
    )
    return [one for one in found if one is not None]
