"""Section of ``micro``: the time of single messages by size, with Hockney's model fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, hockney
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.statistics import Estimate, median
from benchmarks.harness.units import digits, percent, seconds, size, times

_WAYS = {
    "comm": draw.Style(draw.INK, "o", "-"),
    "comm-untimed": draw.Style(figures.SKY, "s", "--"),
    "mpi4py": draw.Style(figures.ORANGE, "^", "-."),
    "message": draw.Style(figures.GREEN, "D", ":"),
}
_NAMES = {"allreduce": "Allreduce", "broadcast": "Bcast"}
_DEFAULT = ("defaults", "default", "")
LONG = 65536  # bytes: above, ours is held against the bare call by its share, below by its excess
_FIT = ("comm-untimed", "mpi4py", "comm")  # the first that is there is fitted


@dataclass(frozen=True)
class Case:
    """One operation between the same ranks under the same settings.

    Attributes:
        ways: median seconds of a call by way through and bytes. rows: by way and bytes too.
    """

    operation: str
    ranks: int
    hosts: int
    link: str
    mpi: str
    ways: dict[str, dict[int, float]]
    rows: dict[tuple[str, int], Row]

    @property
    def place(self) -> str:
        """Where the ranks are."""
        if self.hosts == 1:
            return f"{self.ranks} ranks on one host"
        link = "" if self.link in ("", "none", "unlimited") else f", link {self.link}"
        return f"{self.ranks} ranks on {self.hosts} hosts{link}"

    @property
    def title(self) -> str:
        """Operation, place and settings."""
        mpi = "" if self.mpi in _DEFAULT else f", MPI settings {self.mpi}"
        return f"{_NAMES.get(self.operation, self.operation)}, {self.place}{mpi}"

    def estimate(self, way: str, nbytes: int) -> Estimate:
        """The median with its interval."""
        return median([np.asarray(self.rows[way, nbytes]["seconds"], dtype=np.float64)])

    @property
    def fit(self) -> tuple[str, hockney.Hockney] | None:
        """Hockney's model of the barest way that was measured; None of a single size."""
        for way in _FIT:
            found = self.ways.get(way, {})
            if len(found) > 1:
                return way, hockney.fit(list(found), list(found.values()))
        return None


def cases(rows: Sequence[Row]) -> list[Case]:
    """The rows by operation, place and settings."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        s = row["settings"]
        link, mpi = str(s.get("link") or ""), str(s.get("mpi") or "")
        key = (s["hosts"], link, s["ranks"], s["operation"], mpi not in _DEFAULT, mpi)
        grouped.setdefault(key, []).append(row)
    made = []
    for (hosts, link, ranks, operation, _, mpi), some in sorted(grouped.items()):
        ways: dict[str, dict[int, float]] = {}
        by = {}
        for row in sorted(some, key=lambda row: row["settings"]["bytes"]):
            through, nbytes = row["settings"]["through"], row["settings"]["bytes"]
            ways.setdefault(through, {})[nbytes] = float(np.median(row["seconds"]))
            by[through, nbytes] = row
        made.append(Case(operation, ranks, hosts, link, mpi, ways, by))
    return made


def section(rows: Sequence[Row]) -> Section | None:
    """The section; None where there are no rows."""
    if not rows:
        return None
    whole = Section(
        "Messages by size",
        [
            Text(
                "Time of one collective call, the slowest rank's. comm: this package's layer as it "
                "trains; comm-untimed: without barriers and clocks; mpi4py: the bare call on the "
                "same buffer; message: vector and scalars fused. Model (Hockney): latency + bytes "
                "/ bandwidth."
            )
        ],
    )
    found = cases(rows)
    shown = [case for case in found if _is_shown(case, found)]
    whole.parts += [_picture(case) for case in shown]
    whole.parts += [fit_table(found), *_settings(found)]
    whole.parts += [size_table(case) for case in shown]
    return whole


def _is_shown(case: Case, found: Sequence[Case]) -> bool:
    """A picture of the default settings, or of the first where they were not measured."""
    return case is next(other for other in found if _same(other, case))


def _same(one: Case, other: Case) -> bool:
    return (one.operation, one.place) == (other.operation, other.place)


def _picture(case: Case) -> Picture:
    fitted = case.fit
    names = ", ".join(case.ways)

    def on(ax: Any) -> None:
        ax.set_xscale("log")
        ax.set_yscale("log")
        handles, sizes = [], set()
        for number, (way, values) in enumerate(case.ways.items()):
            look = _WAYS.get(way) or draw.style(way, number)
            for nbytes in values:
                draw.point(ax, nbytes, case.estimate(way, nbytes), look)
                sizes.add(nbytes)
            handles.append(draw.handle(look, way))
        if fitted is not None:
            x = np.geomspace(min(sizes), max(sizes), 60)
            (line,) = ax.plot(x, [fitted[1].seconds(b) for b in x], color=figures.RED, lw=1.2)
            line.set_label(f"model of {fitted[0]}")
            handles.append(line)
        draw.bytes_axis(ax.xaxis)
        draw.log_axis(ax.yaxis, seconds)
        ax.set_xlabel("payload")
        ax.set_ylabel("time of a call")
        draw.legend(ax, handles=handles)

    return Picture(
        f"micro-{slug(case.title)}",
        case.title,
        "Medians with 95 percent intervals. The line is the model, not the measurements joined.",
        f"Scatter plot, both axes logarithmic: time of a call against payload through {names}"
        + (", with the fitted model's line." if fitted else "."),
        draw.svg(on, height=4.1),
        tuple(findings(case)),
    )


def findings(case: Case) -> list[Finding]:
    """The fit, and our layer against the bare call."""
    found = []
    if case.fit is not None:
        way, model = case.fit
        found.append(
            Finding(
                f"{case.title}: {_model(model)}; the fit ({way}) is off by "
                f"{percent(model.residual)} percent (median).",
                key=True,
            )
        )
    for way, what in (("comm", "as it trains"), ("comm-untimed", "without barriers and clocks")):
        ours, bare = case.ways.get(way), case.ways.get("mpi4py")
        if not (ours and bare):
            continue
        both = sorted(set(ours) & set(bare))
        long = [bare[b] / ours[b] for b in both if b > LONG]
        short = [ours[b] - bare[b] for b in both if b <= LONG]
        bounds = []
        if long:
            share = percent(min(long))
            bounds.append(f"at least {share} percent of the bare call's speed above 64 KiB")
        if short:
            worst = 1e6 * max(0.0, max(short))
            bounds.append(f"at most {digits(worst)} µs more up to 64 KiB")
        if bounds:
            found.append(Finding(f"{case.title}, {way} ({what}): {'; '.join(bounds)}."))
    return found


def _model(model: hockney.Hockney) -> str:
    if math.isinf(model.bandwidth):
        return f"latency {seconds(model.latency)}, no limit of bandwidth seen"
    return f"latency {seconds(model.latency)}, bandwidth {size(model.bandwidth)}/s"


def fit_table(found: Sequence[Case]) -> Table:
    """The fitted model of every case."""
    rows = []
    for case in found:
        if case.fit is not None:
            way, model = case.fit
            speed = "-" if math.isinf(model.bandwidth) else digits(model.bandwidth / 1e6)
            error = percent(model.residual)
            rows.append([case.title, way, digits(1e6 * model.latency), speed, error])
    header = ["operation", "through", "latency, µs", "bandwidth, MB/s", "median error, %"]
    return Table("Latency and bandwidth, fitted", header, rows, text=2)


def size_table(case: Case) -> Table:
    """OSU-style: a line per size and way."""
    header = [
        *("payload", "through", "median, µs [95 %]", "min, µs", "max, µs", "calls"),
        *("bare / this", "model, µs"),
    ]
    model = case.fit[1] if case.fit is not None else None
    rows = []
    for nbytes in sorted({nbytes for values in case.ways.values() for nbytes in values}):
        for way, values in case.ways.items():
            if nbytes not in values:
                continue
            all_of = case.rows[way, nbytes]["seconds"]
            bare = case.ways.get("mpi4py", {}).get(nbytes)
            rows.append(
                [
                    f"{nbytes:,} B",
                    way,
                    case.estimate(way, nbytes).times(1e6).text(digits),
                    *(digits(1e6 * min(all_of)), digits(1e6 * max(all_of)), str(len(all_of))),
                    f"{bare / values[nbytes]:.3f}" if bare else "-",
                    digits(1e6 * model.seconds(nbytes)) if model else "-",
                ]
            )
    return Table(case.title, header, rows, text=2, folded=True)


def _settings(found: Sequence[Case]) -> list[Part]:
    """Where several MPI settings were tried: how they compare at the longest common message."""
    parts: list[Part] = []
    for case in found:
        rivals = [other for other in found if _same(other, case)]
        if len(rivals) < 2 or rivals[0] is not case:
            continue
        parts += _rivals(rivals)
    return parts


def _rivals(rivals: Sequence[Case]) -> list[Part]:
    way = next(
        (w for w in ("comm", "mpi4py", "comm-untimed") if all(w in r.ways for r in rivals)), None
    )
    if way is None:
        return []
    common = sorted(set.intersection(*(set(rival.ways[way]) for rival in rivals)))
    if not common:
        return []
    shown = common if len(common) <= 6 else [common[i * (len(common) - 1) // 5] for i in range(6)]
    rows = [
        [rival.mpi or "default", *(digits(1e6 * rival.ways[way][b]) for b in shown)]
        for rival in rivals
    ]
    longest = common[-1]
    best = min(rivals, key=lambda rival: rival.ways[way][longest])
    first = rivals[0]
    gain = first.ways[way][longest] / best.ways[way][longest]
    name = f"{_NAMES.get(first.operation, first.operation)}, {first.place}"
    text = f"{name}: MPI settings {best.mpi or 'default'!r} are best at {size(longest)}"
    if best is not first:
        text += f", {times(gain)} times faster than {first.mpi or 'default'!r}"
    caption = f"MPI settings, {name}: median time of a call through {way}, µs"
    header = ["settings", *(size(nbytes) for nbytes in shown)]
    return [Finding(text + "."), Table(caption, header, rows)]


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = section(rows["micro"])
    return [] if found is None else [found]
