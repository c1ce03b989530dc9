"""What is found in ``strong`` and ``weak``, in sentences."""

from __future__ import annotations

import numpy as np

from benchmarks.harness.phase_runs import COMPUTE, TIMED, Point
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding
from benchmarks.harness.statistics import Estimate, median
from benchmarks.harness.units import percent, seconds, times
from benchmarks.scaling import page_figures as figures
from benchmarks.scaling.series import Network, Series


def _most(series: Series) -> Point | None:
    """The most ranks that a speedup may be drawn from."""
    return series.valid[-1] if series.valid and series.valid[-1].ranks > 1 else None


def time_findings(network: Network, kind: str, models: dict[int, Estimate]) -> list[Finding]:
    """How long the first method takes on the fewest and on the most ranks."""
    first = network.series[0]
    found = []
    most = _most(first)
    unit = "per epoch" if kind == "strong" else "of a rank per sample gradient"
    if most is None or first.base is None:
        point = first.points[0]
        value = seconds(figures.shown(point, kind).value)
        found.append(Finding(f"{first.label} takes {value} {unit} at N = {point.ranks}."))
    else:
        one, many = (figures.shown(point, kind).value for point in (first.base, most))
        text = f"{first.label} takes {seconds(one)} {unit} at N = 1, {seconds(many)} at N = "
        text += f"{most.ranks}"
        if kind == "strong":
            gain = one / many
            text += f": {times(max(gain, 1 / gain))} times {'faster' if gain >= 1 else 'slower'}"
            text += f" (ideal: {most.ranks} times faster)"
        else:
            change = 100 * (many / one - 1)
            text += f": {abs(change):.1f} percent {'more' if change >= 0 else 'less'} (ideal: 0)"
        found.append(Finding(text + ".", key=True))
    off = [
        abs(models[id(point)].value / figures.shown(point, kind).value - 1)
        for point in network.points
        if id(point) in models and not point.oversubscribed
    ]
    if off:
        count = f"{len(off)} point{'s' if len(off) > 1 else ''}"
        found.append(
            Finding(
                f"The model is off by {percent(float(np.median(off)))} percent (median, {count})."
            )
        )
    return found


def efficiency_findings(network: Network) -> list[Finding]:
    """Efficiency of the first method, and the least, at the most ranks."""
    found = []
    by: list[tuple[float, Series, Point]] = []
    for series in network.series:
        most = _most(series)
        value = series.efficiency(most) if most is not None else None
        if most is None or value is None:
            continue
        by.append((value.value, series, most))
        if series is network.series[0]:
            share = value.times(100).text(lambda number: f"{number:.1f}")
            text = f"Efficiency is {share} percent at N = {most.ranks} ({series.label})."
            found.append(Finding(text, key=True))
    if len(by) > 1:
        value_, series, most = min(by, key=lambda item: item[0])
        text = f"Least: {percent(value_)} percent at N = {most.ranks} ({series.label})."
        found.append(Finding(text))
    if not by:
        base = any(series.base is not None for series in network.series)
        why = "all on more than one rank are oversubscribed" if base else "N = 1 was not measured"
        found.append(Finding(f"No efficiency can be given: {why}."))
    return found


def phase_findings(network: Network) -> list[Finding]:
    """Share of communication: of the first method, the most of all; warnings."""
    found = []
    several = [p for s in network.series for p in s.valid if p.ranks > 1]
    first = _most(network.series[0])
    if first is not None:
        found.append(Finding(_share(first, network.series[0].label), key=True))
    if len(several) > 1:
        worst = max(several, key=lambda point: point.communication)
        if worst is not first:
            found.append(Finding(f"Most: {percent(worst.communication)} percent{_at(worst)}."))
    if not several:
        found.append(Finding(_share(network.series[0].points[-1], network.series[0].label)))
    for series in network.series:
        for point in series.points:
            if point.communication > point.compute:
                text = (
                    f"Communication exceeds compute at N = {point.ranks} ({series.label}): "
                    f"{percent(point.communication)} against {percent(point.compute)} percent of "
                    f"the time{'; oversubscribed' if point.oversubscribed else ''}."
                )
                found.append(Finding(text, warning=True))
    return found


def _share(point: Point, label: str) -> str:
    wait = percent(point.share("wait"))
    return (
        f"Communication is {percent(point.communication)} percent of the time at N = "
        f"{point.ranks} ({label}), waiting {wait} percent"
        f"{'; oversubscribed' if point.oversubscribed else ''}."
    )


def _at(point: Point) -> str:
    return f" at N = {point.ranks} ({point.method})"


def spread_findings(network: Network) -> list[Finding]:
    """The method and N whose slow iterations are slowest against its median."""

    def wide(point: Point) -> float:
        values = np.concatenate([run.iterations for run in point.runs])
        return float(np.quantile(values, 0.95) / max(float(np.median(values)), 1e-12))

    meant = [p for p in network.points if not p.oversubscribed] or network.points
    worst = max(meant, key=wide)
    text = (
        f"Widest{_at(worst)}: 1 of 20 iterations takes more than {times(wide(worst))} times the "
        "median."
    )
    return [Finding(text)]


def hindrances(series: Series) -> list[str]:
    """For ours, a sentence per N: what stands between it and the ideal."""
    if not series.method.startswith("apts") or series.base is None:
        return []
    base, sentences = series.base, []
    for point in series.valid:
        lost = series.lost(point)
        if lost is None:
            continue
        before, now = (sum(p.phase_cost[name] for name in COMPUTE) for p in (base, point))
        change = 100 * (now / before - 1) if before else 0.0
        why = "smaller batches, memory bandwidth shared"
        if point.settings["batch"] == base.settings["batch"]:
            why = "the batch is the same: memory bandwidth or the cores' clock shared"
        grew = f"compute per sample gradient grew by {change:.1f} percent ({why})"
        if change <= 0:
            grew = f"compute per sample gradient fell by {-change:.1f} percent"
        evaluation = point.phase_cost["evaluation"] / sum(point.phase_cost[p] for p in TIMED)
        sentences.append(
            f"What stands in the way, {series.label}, N = 1 to {point.ranks}: {grew}; waiting is "
            f"{percent(point.share('wait'))} percent of the time, communication "
            f"{percent(point.communication)}, drawing data {percent(point.share('data'))}, the "
            f"rest {percent(point.share('other'))}. Evaluation, left out of the time, would add "
            f"{percent(evaluation)} percent; start-up and the first iterations are left out."
        )
    return sentences


def clock_finding(row: Row) -> Finding:
    """What measuring phases costs: neighbouring iterations with the clock on and off."""
    s = row["settings"]
    cost = median([100.0 * (np.array(row["on"]) / np.array(row["off"]) - 1.0)])
    between = ""
    if cost.low is not None and cost.high is not None:
        between = f" (95 percent interval {cost.low:.2f} to {cost.high:.2f})"
    return Finding(
        f"Measuring the phases costs {cost.value:.2f} percent{between} of the time at "
        f"N = {s['ranks']} ({s['method']}; median of {len(row['on'])} pairs of outer iterations, "
        "one with the clock and one without)."
    )
