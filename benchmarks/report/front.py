"""What is seen first: a verdict of at most three sentences, and a figure for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import drawing as draw
from benchmarks.harness import names
from benchmarks.harness.phase_runs import points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Text
from benchmarks.harness.units import digits, percent, seconds, times
from benchmarks.messages.network.cases import Case, cases
from benchmarks.messages.network.plan import DDP
from benchmarks.project.projection import Lines, computer_of, grouped, last_ranks, limit, ours, why
from benchmarks.quality.compare.pictures import NEAR, bytes_sent, difference, judged, lost
from benchmarks.quality.compare.tasks import Task, ahead, tasks
from benchmarks.scaling.findings import phase_findings
from benchmarks.scaling.series import Network, Series, networks

SENTENCES = 3


def front(rows: Mapping[str, list[Row]]) -> list[Part]:
    """The verdict and the first figures, of what there is."""
    compared, links = tasks(rows["compare"]), cases(rows["network"])
    strong = networks(points(runs(rows["strong"])[0]), "strong")
    measured, projected = (strong[0] if strong else None), _projected(rows["projection"], strong)
    verdict = [_quality(compared), _sooner(links), _scaling(measured, rows["projection"])]
    if measured is not None:
        verdict += [one.text for one in phase_findings(measured)[:1]]
    sentences = [one for one in verdict if one][:SENTENCES]
    most = max((t for t in compared if t.ours), key=lambda t: len(t.rivals), default=None)
    pictures = [
        _time(links),
        None if most is None else bytes_sent(most),
        _efficiency(measured, projected, compared),
        lost(compared),
    ]
    return [*map(Text, sentences), *(one for one in pictures if one is not None)]


# ---- the verdict ---------------------------------------------------------------------------


def _quality(found: Sequence[Task]) -> str | None:
    """Against gradient averaging at equal work, and against the best of all."""
    against = [(t.ours[t.ranks], t.averaging) for t in found if t.ranks in t.ours]
    pairs = [(own, other) for own, other in against if other is not None]
    every = judged(found)
    if not pairs:
        return None
    good = sum(ahead(own, other) >= -NEAR for own, other in pairs)
    parts = [
        other.average("bytes_allreduced") / max(own.average("bytes_allreduced"), 1.0)
        for own, other in pairs
    ]
    text = (
        f"At equal work, with no learning rate set, {names.PRODUCT} is at least level with the "
        f"best tuned gradient averaging on {good} of {len(pairs)} tasks, with "
        f"{_between([1 / part for part in parts])} of its bytes"
    )
    task, own, other, value = every[0]
    if value < -NEAR:
        text += (
            f"; it loses to {names.shown(other.method)} by {difference(own, value)} on {task.name}"
        )
    return f"{text}."


def _between(parts: Sequence[float]) -> str:
    low, high = (f"1/{times(1 / part)}" for part in (min(parts), max(parts)))
    return low if low == high else f"{low} to {high}"


def _sooner(found: Sequence[Case]) -> str | None:
    """Against PyTorch's own averaging over the narrowest and the widest link."""
    by: dict[str, list[float]] = {}
    goal = ""
    for case in found:
        reached = {entry.method: entry.reached for entry in case.entries}
        own, other = reached.get("apts"), reached.get(DDP)
        if own and other:
            by.setdefault(names.shown(case.link), []).append(other / own)
            goal = f"{100 * case.target:g} percent"
    if not by:
        return None
    told = [f"{_range(gains)} times over {link}" for link, gains in by.items()]
    kept = told if len(told) < 3 else [told[0], told[-1]]
    return (
        f"Between hosts it reaches {goal} sooner than tuned {names.shown(DDP)}: {', '.join(kept)}."
    )


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _scaling(measured: Network | None, projection: Sequence[Row]) -> str | None:
    """What was measured on the most ranks, and where the projection ends."""
    text = "" if measured is None else _measured(measured.series[0])
    by = {key: m for key, m in grouped(projection).items() if not computer_of(key)}
    ends = [(last, key[0]) for key, m in by.items() if (last := limit(m[ours(m)])) is not None]
    if ends:
        (low, narrow), (high, wide) = min(ends), max(ends)
        text += "; projected to more ranks of such cores it stops paying beyond N = "
        text += f"{low} over {narrow}" + (f" and N = {high} over {wide}" if high != low else "")
        text = text.removeprefix("; ")
    return f"{text[0].upper()}{text[1:]}." if text else None


def _measured(series: Series) -> str:
    known = [(p, e) for p in series.valid if (e := series.efficiency(p)) is not None]
    if not known or known[-1][0].ranks == 1:
        return ""
    point, value = known[-1]
    return f"Measured on {point.ranks} ranks: {percent(value.value)} percent efficiency"


# ---- the figures ---------------------------------------------------------------------------


def _time(found: Sequence[Case]) -> Picture | None:
    """Seconds to the target by link and network."""
    sentence = _sooner(found)
    if not found:
        return None
    methods = list(dict.fromkeys(entry.method for case in found for entry in case.entries))
    told = [
        f"{names.shown(case.link)}, {case.parameters:,} parameters: "
        + ", ".join(
            f"{names.shown(e.method)} {seconds(e.reached) if e.reached else 'never'}"
            for e in case.entries
        )
        for case in found
    ]

    def on(ax: Any) -> None:
        looks = draw.styles(methods)
        for y, case in enumerate(found):
            ax.axhline(y, color=draw.LINE, lw=0.6)
            for entry in case.entries:
                look = looks[entry.method]
                if entry.reached:
                    mark: dict[str, Any] = {"ms": 8 if entry.method == "apts" else 6.5, "mew": 0.5}
                    ax.plot(entry.reached, y, look.marker, color=look.colour, mec=draw.INK, **mark)
        ax.set_xscale("log")
        draw.log_axis(ax.xaxis, seconds)
        ax.set_xlabel("time to the target, start-up and evaluation left out")
        labels = [
            f"{names.shown(c.link)}\n{digits(c.parameters / 1e6)} M parameters" for c in found
        ]
        ax.set_yticks(range(len(found)), labels, size=7.5)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        draw.legend(ax, columns=2, handles=[draw.handle(looks[m], m) for m in methods])

    hosts = ", ".join(sorted({str(case.hosts) for case in found}))
    return Picture(
        "time-to-accuracy",
        f"Time to {100 * found[0].target:g} percent test accuracy, {hosts} hosts",
        "Medians; every other method at the best of its searched rates and batches for the link.",
        f"Dot plot, logarithmic: seconds by link and network. {'; '.join(told)}.",
        draw.svg(on, height=3.9),
        (Finding(sentence),) if sentence else (),
    )


def _projected(rows: Sequence[Row], strong: Sequence[Network]) -> tuple[str, Lines] | None:
    """The first network of machines as measured, at the size next to what was measured."""
    by = {key: m for key, m in grouped(rows).items() if not computer_of(key)}
    if not by:
        return None
    size = strong[0].parameters if strong else 0
    key = min(by, key=lambda key: abs(key[1] - size))
    return key[0], by[key]


def _efficiency(
    measured: Network | None, projected: tuple[str, Lines] | None, found: Sequence[Task]
) -> Picture | None:
    """Efficiency, measured and projected beyond, and below it accuracy by ranks at fixed work."""
    known = [] if measured is None else [s for s in measured.series if s.base is not None]
    if not known and projected is None:
        return None
    task = max((t for t in found if t.ours), key=lambda t: len(t.ours), default=None)
    task = task if task is not None and len(task.ours) > 1 else None
    lines = {} if projected is None else projected[1]
    shown = {names.shown(m): own for m, own in lines.items()}
    chosen = [s for s in known if s.label in shown] or known[:3]
    labels = [s.label for s in chosen] or list(shown)[:4]
    most = max((p.ranks for s in chosen for p in s.valid), default=1)
    looks = draw.styles(labels)

    def on(axes: Any) -> None:
        ax = axes[0] if task is not None else axes
        every = {1, *(n for label in labels for n in shown.get(label, ()))}
        for series in chosen:
            for point in series.valid:
                value = series.efficiency(point)
                if value is not None:
                    every.add(point.ranks)
                    draw.point(ax, point.ranks, value.times(100), looks[series.label])
        for label in labels:
            own = shown.get(label, {})
            x = [n for n in sorted(own) if n >= most]
            y = [100 * own[n]["efficiency"] for n in x]
            ax.plot(x, y, color=looks[label].colour, ls=":", lw=1.5)
        if shown:
            place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "size": 8}
            ax.axvspan(most * 1.15, 2 * max(every), color=draw.LINE, alpha=0.35, lw=0)
            ax.text(most * 1.3, 0.98, "projected, not measured", va="top", **place)
        ax.axhline(50, color=draw.INK, lw=0.6, ls="--")
        draw.ranks_axis(ax, sorted(every))
        ax.set_ylim(0, 118)
        ax.set_ylabel("efficiency, %")
        handles = [draw.handle(looks[label], label) for label in labels]
        if task is not None:
            ax.set_xlabel("")
            _accuracy(axes[1], task, sorted(every))
        draw.legend(ax, handles=handles)

    text = [] if not known else [f"{_measured(known[0])}."] * bool(_measured(known[0]))
    if projected is not None:
        own = lines[ours(lines)]
        reason = why(own)
        text.append(
            f"Projected over {projected[0]}, at least 50 percent up to N = {last_ranks(own)}"
            + (f"; it {reason}." if reason else ".")
        )
    below = ""
    if task is not None:
        values = ", ".join(f"{e.mean:{e.measure.form}} at N = {n}" for n, e in task.ours.items())
        below = f" Below: {task.name}, the same work at every N: {values}."
    return Picture(
        "efficiency",
        "Efficiency of the same work on more ranks"
        + (f"; accuracy beside it ({task.name})" if task is not None else ""),
        "Marks: measured, with 95 percent intervals; dotted, on grey: projected by the cost model."
        + (
            " Below: final figures at fixed work; dashed: the best gradient averaging."
            * bool(below)
        ),
        f"Scatter plot with lines: efficiency in percent against ranks for {', '.join(labels)}. "
        + " ".join(text)
        + below,
        draw.svg(on, height=4.6 if task is not None else 3.4, panels=2 if task is not None else 1),
        (Finding(" ".join(text)),) if text else (),
    )


def _accuracy(ax: Any, task: Task, every: Sequence[int]) -> None:
    """Final figures of ours and of the local methods by ranks."""
    by: dict[str, dict[int, float]] = {names.OURS: {n: e.mean for n, e in task.ours.items()}}
    for entry in task.entries:
        if entry.figures and not entry.averaging and entry.settings["optimizer"] != "apts":
            by.setdefault(names.shown(entry.method), {})[entry.ranks] = entry.mean
    for label, values in by.items():
        look = draw.style(label)
        line: dict[str, Any] = {"color": look.colour, "ls": look.dash, "marker": look.marker}
        ax.plot(sorted(values), [values[n] for n in sorted(values)], ms=4.5, lw=1.2, **line)
    measure = next(iter(task.ours.values())).measure
    if task.averaging is not None:
        ax.axhline(task.averaging.mean, color=draw.INK, lw=0.7, ls="--")
    draw.ranks_axis(ax, every)
    ax.set_ylabel(f"{measure.name}, {measure.unit}")
