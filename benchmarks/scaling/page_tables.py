"""Tables of ``strong`` and ``weak``, a line per method and number of ranks."""

from __future__ import annotations

from apts_mpi.comm.clock import COMMUNICATION
from benchmarks.harness.phase_runs import TIMED, Point
from benchmarks.harness.sections import Table
from benchmarks.harness.units import digits, percent, signed
from benchmarks.scaling.series import Network


def _ranks(point: Point) -> str:
    return f"{point.ranks}{' †' if point.oversubscribed else ''}"


def main_table(network: Network) -> Table:
    """Times, speedups and traffic, a line per method and N."""
    header = [
        *("method", "N", "batch per rank", "local steps", "runs x iterations"),
        *(
            "iteration, ms [95\u00a0%]",
            "epoch, s [95\u00a0%]",
            "speedup",
            "efficiency, % [95\u00a0%]",
        ),
        *("µs per sample gradient and rank", "CPU s per rank and epoch"),
        *("messages per epoch", "MB per rank and epoch"),
    ]
    rows = []
    for series in network.series:
        for point in series.points:
            efficiency = series.efficiency(point)
            lengths = sorted({len(run.iterations) for run in point.runs})
            steps = point.first.get("local_steps")
            speedup, percents = "-", "-"
            if efficiency is not None:
                speedup = "base" if point is series.base else digits(efficiency.value * point.ranks)
                percents = efficiency.times(100).text(lambda value: f"{value:.1f}")
            rows.append(
                [
                    *(series.label, _ranks(point), str(point.settings["batch"])),
                    "-" if steps is None else str(steps),
                    f"{len(point.runs)} x {'-'.join(map(str, lengths))}",
                    point.per_iteration.times(1e3).text(digits),
                    point.per_epoch.text(digits),
                    *(speedup, percents, digits(point.per_gradient.value * 1e6)),
                    digits(point.per_epoch_of("cpu")),
                    digits(point.per_epoch_of("messages")),
                    digits(point.per_epoch_of("bytes") / 1e6),
                ]
            )
    return Table("Times and traffic", header, rows)


def phase_table(network: Network) -> Table:
    """Shares of the phases, a line per method and N."""
    header = ["method", "N", *TIMED, "communication", "slowest rank over mean", "+ evaluation"]
    rows = []
    for series in network.series:
        for point in series.points:
            whole = sum(point.phase_cost[phase] for phase in TIMED)
            rows.append(
                [
                    *(series.label, _ranks(point)),
                    *(percent(point.share(phase)) for phase in TIMED),
                    percent(point.share(*COMMUNICATION)),
                    f"{point.slowest / whole:.3f}",
                    percent(point.phase_cost["evaluation"] / whole),
                ]
            )
    caption = (
        "Phases in percent of the ranks' time (sums over sums); the base is without evaluation"
    )
    return Table(caption, header, rows)


def lost_table(network: Network) -> Table | None:
    """What keeps each method from the ideal, by phase; None where nothing was measured of it."""
    header = ["method", "N", *TIMED, "unequal ranks", "all"]
    rows = []
    for series in network.series:
        for point in series.points:
            lost = series.lost(point)
            if lost is not None:
                cells = [signed(value) for value in (*lost.values(), sum(lost.values()))]
                rows.append([series.label, str(point.ranks), *cells])
    if not rows:
        return None
    caption = (
        "What keeps it from the ideal: rank-seconds per sample gradient more than at N = 1, in "
        "percent of those at N = 1 (unequal ranks: the slowest's time beyond the mean; all is "
        "1/efficiency - 1 by sums instead of medians)"
    )
    return Table(caption, header, rows)
