"""Section of ``strong`` and ``weak``: what more ranks bring, and what stands in the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from apts_mpi.comm.clock import COMMUNICATION
from benchmarks.harness import tables
from benchmarks.harness.phase_runs import TIMED, Point, but, points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.statistics import Estimate
from benchmarks.harness.units import digits, percent, signed
from benchmarks.scaling import figures, findings
from benchmarks.scaling.plan import SPLIT
from benchmarks.scaling.series import Network, Series, networks

TITLES = {"strong": "Strong scaling", "weak": "Weak scaling"}
WHAT = {
    "strong": "The same work on more and more ranks: N ranks divide the local steps or the "
    "minibatch of one. Ideal: 1/N of the time of one rank.",
    "weak": "The same work per rank on more and more ranks: N ranks do N times the work of one "
    "between two messages. Ideal: a rank takes as long for a sample gradient as alone.",
}
HOW = (
    "An iteration's time is that of its slowest rank, evaluation left out. Points are medians over "
    "outer iterations, bars and brackets 95 percent intervals (bootstrap); points are not joined, "
    "as nothing lies between. Efficiency: against one rank, by time per work."
)
OVERSUBSCRIBED = (
    "† oversubscribed: more ranks than cores. Wall times mean little there; no speedup or "
    "efficiency is drawn from them, CPU seconds stand beside."
)


def command_section(kind: str, rows: Sequence[Row], options: object) -> Section | None:
    """The section of a command's file, with its set-up."""
    by = {name: [r for r in rows if r["settings"]["benchmark"] == name] for name in (kind, SPLIT)}
    found = section(kind, by[kind], split=by[SPLIT])
    if found is not None:
        found.foot.append(tables.setup(by[kind]))
    return found


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = (
        section("strong", rows["strong"], rows["prediction"], rows["split"]),
        section("weak", rows["weak"], rows["prediction"]),
    )
    return [one for one in found if one is not None]


def section(
    kind: str, rows: Sequence[Row], predictions: Sequence[Row] = (), split: Sequence[Row] = ()
) -> Section | None:
    """The section of one kind; None where it has no rows.

    Args:
        kind: "strong" or "weak". predictions: of the cost model. split: of runs whose clock was on
            and off in turn.
    """
    if not rows:
        return None
    made, missing = runs(rows)
    epoch = f" An epoch: {made[0].samples:,.0f} sample gradients." if made else ""
    whole = Section(TITLES[kind], [Text(f"{WHAT[kind]} {HOW}{epoch}")])
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
    methods = ", ".join(series.label for series in network.series)
    parts: list[Part] = [
        Picture(
            f"{name}-time",
            "Time against ranks",
            "Dashed: ideal, from one rank of the same method."
            + (" Bars, dotted between: the cost model." if models else "")
            + (" Hollow: oversubscribed." if network.oversubscribed else ""),
            f"Scatter plot, both axes logarithmic: time against number of ranks for {methods}. "
            "Values are under Data.",
            figures.time(network, kind, models),
            tuple(findings.time_findings(network, kind, models)),
        )
    ]
    if len({point.ranks for point in network.points}) > 1:
        parts.append(
            Picture(
                f"{name}-efficiency",
                "Parallel efficiency",
                "Quotient of the medians at one rank and at N. The axis need not begin at 0.",
                "Scatter plot: parallel efficiency in percent against number of ranks for "
                f"{methods}. Values are under Data.",
                figures.efficiency(network),
                tuple(findings.efficiency_findings(network)),
            )
        )
    parts += [
        Picture(
            f"{name}-phases",
            "Where the time goes",
            "Mean over ranks and iterations, by phase; evaluation, outlined, is not part of the "
            "time. Beside a bar: communication (allreduce and broadcast) + wait, in percent."
            + (" †: oversubscribed." if network.oversubscribed else ""),
            f"Stacked bars, one per method and number of ranks: time by phase for {methods}. "
            "Shares are under Data.",
            figures.phases(network, kind),
            tuple(findings.phase_findings(network)),
        ),
        Picture(
            f"{name}-spread",
            "Spread of iteration times",
            "Boxes: quartiles and median; whiskers: 5 to 95 percent; dots: single outer iterations "
            "(at most 20 a box). An outer iteration is up to the method, from one gradient step to "
            "some forty.",
            f"Box plots, logarithmic axis: times of outer iterations for {methods}.",
            figures.spread(network),
            tuple(findings.spread_findings(network)),
        ),
    ]
    for series in network.series:
        parts += findings.hindrances(series)
    parts += [table for table in _tables(network) if table.rows]
    if network.oversubscribed:
        parts.append(Text(OVERSUBSCRIBED))
    return parts


def modelled(network: Network, kind: str, predictions: Sequence[Row]) -> dict[int, Estimate]:
    """What the cost model says of each point, as it is plotted, by id() of the point."""

    def key(settings: Row) -> str:
        return json.dumps(but(settings, "rank", "phase", "repetition"), sort_keys=True)

    by = {key(row["settings"]["of"]): float(row["predicted"]) for row in predictions}
    found = {}
    for point in network.points:
        iteration = by.get(key(point.settings))
        if iteration is not None:
            run = point.runs[0]
            work = run.samples if kind == "strong" else point.ranks
            found[id(point)] = Estimate(iteration * work / run.per_evaluation)
    return found


def _tables(network: Network) -> list[Table]:
    """Times, phases, and what is lost: a line per method and N in each."""

    def table(
        caption: str, header: Sequence[str], line: Callable[[Series, Point], list[str] | None]
    ) -> Table:
        pairs = [(series, point) for series in network.series for point in series.points]
        lines = [
            [series.label, f"{point.ranks}{' †' * point.oversubscribed}", *cells]
            for series, point in pairs
            if (cells := line(series, point)) is not None
        ]
        return Table(caption, ["method", "N", *header], lines)

    return [
        table("Times and traffic", _TIMES, _times),
        table(
            "Phases in percent of the ranks' time (sums over sums); the base is without evaluation",
            [*TIMED, "communication", "slowest rank over mean", "+ evaluation"],
            _phases,
        ),
        table(
            "What keeps it from the ideal: rank-seconds per sample gradient more than at N = 1, in "
            "percent of those at N = 1 (unequal ranks: the slowest's time beyond the mean; all is "
            "1/efficiency - 1 by sums instead of medians)",
            [*TIMED, "unequal ranks", "all"],
            _lost,
        ),
    ]


_TIMES = [
    *("batch per rank", "local steps", "runs x iterations", "iteration, ms [95\u00a0%]"),
    *("epoch, s [95\u00a0%]", "speedup", "efficiency, % [95\u00a0%]"),
    *("µs per sample gradient and rank", "CPU ms per rank and iteration"),
    *("CPU s per rank and epoch", "messages per epoch", "MB per rank and epoch"),
]


def _times(series: Series, point: Point) -> list[str]:
    efficiency = series.efficiency(point)
    lengths = [len(run.iterations) for run in point.runs]
    steps = point.first.get("local_steps")
    speedup, percents = "-", "-"
    if efficiency is not None:
        speedup = "base" if point is series.base else digits(efficiency.value * point.ranks)
        percents = efficiency.times(100).text("{:.1f}".format)
    cpu = sum(float(run.cpu.mean()) for run in point.runs) / sum(lengths)
    return [
        *(str(point.settings["batch"]), "-" if steps is None else str(steps)),
        f"{len(point.runs)} x {'-'.join(map(str, sorted(set(lengths))))}",
        point.per_iteration.times(1e3).text(lambda value: digits(value, 1)),
        point.per_epoch.text(lambda value: digits(value, 3)),
        *(speedup, percents, digits(point.per_gradient.value * 1e6), digits(1e3 * cpu, 1)),
        *(digits(point.per_epoch_of("cpu")), digits(point.per_epoch_of("messages"))),
        digits(point.per_epoch_of("bytes") / 1e6),
    ]


def _phases(series: Series, point: Point) -> list[str]:
    whole = sum(point.phase_cost[phase] for phase in TIMED)
    return [
        *(percent(point.share(phase)) for phase in TIMED),
        percent(point.share(*COMMUNICATION)),
        f"{point.slowest / whole:.3f}",
        percent(point.phase_cost["evaluation"] / whole),
    ]


def _lost(series: Series, point: Point) -> list[str] | None:
    lost = series.lost(point)
    if lost is None:
        return None
    return [signed(value) for value in (*lost.values(), sum(lost.values()))]
