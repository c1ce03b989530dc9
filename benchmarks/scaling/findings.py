"""What is found in ``strong`` and ``weak``, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness import names
from benchmarks.harness.phase_runs import COMPUTE, TIMED, Point
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding
from benchmarks.harness.statistics import Estimate, median
from benchmarks.harness.units import percent, seconds, times
from benchmarks.scaling.figures import Models, shown
from benchmarks.scaling.series import Network, Series


def _most(series: Series) -> Point | None:
    """The most ranks that a speedup may be drawn from."""
    return series.valid[-1] if series.valid and series.valid[-1].ranks > 1 else None


def time_findings(network: Network, kind: str, models: Models) -> list[Finding]:
    """How long the first method takes on the fewest and on the most ranks."""
    first, found = network.series[0], []
    most = _most(first)
    unit = "per epoch" if kind == "strong" else "of a rank per sample gradient"
    if most is None or first.base is None:
        point = first.points[0]
        value = seconds(shown(point, kind).value)
        found.append(Finding(f"{first.label} takes {value} {unit} at N = {point.ranks}."))
    else:
        one, many = (shown(point, kind).value for point in (first.base, most))
        gain, change = one / many, 100 * (many / one - 1)
        if kind == "strong":
            text = f"{times(max(gain, 1 / gain))} times {'faster' if gain >= 1 else 'slower'}"
            text += f" (ideal: {most.ranks} times faster)"
        else:
            text = f"{abs(change):.1f} percent {'more' if change >= 0 else 'less'} (ideal: 0)"
        at = f"{first.label} takes {seconds(one)} {unit} at N = 1, {seconds(many)} at N = "
        found.append(Finding(f"{at}{most.ranks}: {text}.", key=True))
    off = [
        abs(models[id(point)].value / shown(point, kind).value - 1)
        for point in network.points
        if id(point) in models and not point.oversubscribed
    ]
    if off:
        count = f"median, {len(off)} point{'s' if len(off) > 1 else ''}"
        error = percent(float(np.median(off)))
        found.append(Finding(f"The model is off by {error} percent ({count})."))
    return found


def efficiency_findings(network: Network) -> list[Finding]:
    """Efficiency of the first method, and the least, at the most ranks."""
    by = [
        (value, series, most)
        for series in network.series
        if (most := _most(series)) is not None and (value := series.efficiency(most)) is not None
    ]
    if not by:
        base = any(series.base is not None for series in network.series)
        why = "all on more than one rank are oversubscribed" if base else "N = 1 was not measured"
        return [Finding(f"No efficiency can be given: {why}.")]
    found, (value, series, most) = [], by[0]
    if series is network.series[0]:
        share = value.times(100).text("{:.1f}".format)
        text = f"Efficiency is {share} percent at N = {most.ranks} ({series.label})."
        found.append(Finding(text, key=True))
    if len(by) > 1:
        value, series, most = min(by, key=lambda item: item[0].value)
        at = f"at N = {most.ranks} ({series.label})"
        found.append(Finding(f"Least efficiency: {percent(value.value)} percent {at}."))
    return found


def phase_findings(network: Network) -> list[Finding]:
    """Share of communication: of the first method, the most of all; warnings."""
    several = [p for s in network.series for p in s.valid if p.ranks > 1]
    series, found = network.series[0], []
    first = _most(series)
    if first is not None or not several:
        point = first or series.points[-1]
        found.append(
            Finding(
                f"Communication is {percent(point.communication)} percent of the time at N = "
                f"{point.ranks} ({series.label}), waiting {percent(point.share('wait'))} percent"
                f"{_shared(point)}.",
                key=first is not None,
            )
        )
    if len(several) > 1:
        worst = max(several, key=lambda point: point.communication)
        if worst is not first:
            found.append(
                Finding(f"Most communication: {percent(worst.communication)} percent{_at(worst)}.")
            )
    for series in network.series:
        for point in series.points:
            if point.communication > point.compute:
                text = (
                    f"Communication exceeds compute at N = {point.ranks} ({series.label}): "
                    f"{percent(point.communication)} against {percent(point.compute)} percent of "
                    f"the time{_shared(point)}."
                )
                found.append(Finding(text, warning=True))
    return found


def _shared(point: Point) -> str:
    return "; oversubscribed" if point.oversubscribed else ""


def _at(point: Point) -> str:
    return f" at N = {point.ranks} ({names.shown(point.method)})"


def spread_findings(network: Network) -> list[Finding]:
    """The method and N whose slow iterations are slowest against its median."""

    def wide(point: Point) -> float:
        values = np.concatenate([run.iterations for run in point.runs])
        return float(np.quantile(values, 0.95) / max(float(np.median(values)), 1e-12))

    meant = [p for p in network.points if not p.oversubscribed] or network.points
    worst = max(meant, key=wide)
    most = times(wide(worst))
    text = f"Widest{_at(worst)}: 1 of 20 iterations takes more than {most} times the median."
    return [Finding(text)]


def hindrances(series: Series) -> list[Finding]:
    """For ours, a sentence per N: what stands between it and the ideal."""
    if not series.method.startswith("apts") or series.base is None:
        return []
    base, found = series.base, []
    for point in series.valid:
        if series.lost(point) is None:
            continue
        before, now = (sum(p.phase_cost[name] for name in COMPUTE) for p in (base, point))
        change = 100 * (now / before - 1) if before else 0.0
        why = "smaller batches, memory bandwidth shared"
        if point.settings["batch"] == base.settings["batch"]:
            why = "the batch is the same: memory bandwidth or the cores' clock shared"
        grew = f"grew by {change:.1f} percent ({why})"
        if change <= 0:
            grew = f"fell by {-change:.1f} percent"
        evaluation = point.phase_cost["evaluation"] / sum(point.phase_cost[p] for p in TIMED)
        text = (
            f"What stands in the way, {series.label}, N = 1 to {point.ranks}: compute per sample "
            f"gradient {grew}; waiting is {percent(point.share('wait'))} percent of the time, "
            f"communication {percent(point.communication)}, drawing data "
            f"{percent(point.share('data'))}, the rest {percent(point.share('other'))}. "
            f"Evaluation, left out of the time, would add {percent(evaluation)} percent; start-up "
            "and the first iterations are left out."
        )
        found.append(Finding(text))
    return found


def overhead(on: Sequence[float], off: Sequence[float]) -> Estimate:
    """What the clock adds to an outer iteration, in percent: the median of neighbours' ratios."""
    return median([100.0 * (np.array(on) / np.array(off) - 1.0)])


def clock_finding(row: Row) -> Finding:
    """What measuring phases costs: neighbouring iterations with the clock on and off."""
    s, cost = row["settings"], overhead(row["on"], row["off"])
    between = ""
    if cost.low is not None and cost.high is not None:
        between = f" (95 percent interval {cost.low:.2f} to {cost.high:.2f})"
    return Finding(
        f"Measuring the phases costs {cost.value:.2f} percent{between} of the time at "
        f"N = {s['ranks']} ({names.shown(s['method'])}; median of {len(row['on'])} pairs of outer "
        "iterations, one with the clock and one without)."
    )
