"""The projections: where methods stop paying, and why ours does. Labelled as what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, names
from benchmarks.harness.results import Row
from benchmarks.harness.sections import (
    Finding,
    Markdown,
    Part,
    Picture,
    Section,
    Table,
    Text,
    bullets,
    slug,
)
from benchmarks.harness.units import digits, percent, times
from benchmarks.project.grid import pays_to

HALF = 0.5  # a fair efficiency
Key = tuple[str, int]  # network, and who computes where that is assumed; parameters
Lines = dict[str, dict[int, Row]]  # by method and ranks
TITLE = "Projection: beyond what was measured"


def projections(rows: Sequence[Row], assumptions: Sequence[str] = ()) -> Section | None:
    """What the model says of machines that were not measured; labelled as such throughout."""
    if not rows:
        return None
    by = grouped(rows)
    parts: list[Part] = [*_stops(by), *_whys(by)]
    for computer in dict.fromkeys(map(computer_of, by)):
        parts += _reach(computer, {key: by[key] for key in by if computer_of(key) == computer})
    parts.append(
        Text(
            "Every number and curve of this section is a projection of the cost model, not a "
            "measurement. Efficiency: time per epoch of the same method on one rank over N times "
            "that on N; - where a minibatch would have fewer samples than ranks."
        )
    )
    if assumptions:
        first, *points = assumptions
        parts += [Markdown(first), Markdown(bullets(points))]
    fair = f"Projection: most ranks with an efficiency of at least {100 * HALF:.0f} percent"
    parts.append(_limits(fair, by, lambda own: str(last_ranks(own))))
    pays = [row["pays"] for row in rows if row.get("pays")]
    if pays:
        caption = (
            "Projection: the last ranks that pay, to which every doubling makes an epoch at least "
            f"{pays[0]:g} times as fast (>= the last that was projected; * it has no sample beyond)"
        )
        last = max(row["settings"]["ranks"] for row in rows)
        parts.append(_limits(caption, by, partial(_paying, last)))
    sizes = sorted({size for _, size in by})
    parts += [_table(key, by[key]) for key in by if key[1] in (sizes[0], sizes[-1])]
    return Section(TITLE, parts)


def grouped(rows: Sequence[Row]) -> dict[Key, Lines]:
    """The rows by network and size, then method and ranks."""
    by: dict[Key, Lines] = {}
    for row in rows:
        s = row["settings"]
        key = (s["network"], s["parameters"])
        by.setdefault(key, {}).setdefault(s["method"], {})[s["ranks"]] = row
    return by


def computer_of(key: Key) -> str:
    """Who computes: "" is the machine that was measured."""
    return key[0].partition(", ")[2]


def ours(methods: Lines) -> str:
    """The default method's name; the first of all where it is not among them."""
    return next((name for name in methods if names.shown(name) == names.OURS), next(iter(methods)))


def last_ranks(own: dict[int, Row]) -> int:
    """The ranks up to which efficiency is fair; 1 where it never is."""
    fair = takewhile(lambda ranks: own[ranks]["efficiency"] >= HALF, sorted(own))
    return max(fair, default=1)


def limit(own: dict[int, Row]) -> int | None:
    """The last ranks that pay, where the rows say what does."""
    gain = next(iter(own.values())).get("pays")
    epoch = {ranks: row["seconds_per_epoch"] for ranks, row in own.items()}
    return pays_to(epoch, gain) if gain else None


def why(own: dict[int, Row]) -> str:
    """Where a method stops paying, and what its time goes into beyond; "" where it never does."""
    last = limit(own)
    beyond = min((n for n in own if last is not None and n > last), default=None)
    if beyond is None:
        return ""
    row, text = own[beyond], f"stops paying beyond N = {last}"
    if "messages" not in row:
        return text
    rest = (1.0 - row["messages"] - row["waiting"]) / max(row["efficiency"], 1e-9)
    return (
        f"{text}: on {beyond} ranks messages take {percent(row['messages'])} percent of the time, "
        f"waiting {percent(row['waiting'])}, and a sample's computing {times(rest)} times as long "
        "as on one"
    )


def _paying(last: int, own: dict[int, Row]) -> str:
    found = limit(own)
    if found is None or found < max(own):
        return "-" if found is None else str(found)
    return f">= {found}" if found == last else f"{found}*"


def _where(key: Key) -> str:
    return f"{key[0]}, {key[1]:,} parameters"


def _note(ax: Any) -> None:
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top", "alpha": 0.6}
    ax.text(0.98, 0.97, "projection", **place)


def _stops(by: Mapping[Key, Lines]) -> list[Part]:
    """The last ranks that pay, by network and method, least to most over the sizes."""
    found: dict[str, dict[str, list[int]]] = {}
    for (network, _), lines in by.items():
        for method, own in lines.items():
            last = limit(own)
            if last is not None:
                found.setdefault(network, {}).setdefault(method, []).append(last)
    if not found:
        return []
    methods = list(dict.fromkeys(method for some in found.values() for method in some))
    name = ours(next(iter(by.values())))
    mine = [n for own in found.values() for n in own.get(name, [])]
    text = f"Projection: ours pays up to N = {min(mine)} to {max(mine)}, by network and computer."

    def on(ax: Any) -> None:
        looks = draw.styles(methods)
        for row, own in enumerate(found.values()):
            for number, (method, ends) in enumerate(own.items()):
                y, look = row + (number - (len(own) - 1) / 2) * 0.8 / len(own), looks[method]
                line: dict[str, Any] = {"color": look.colour, "marker": look.marker, "ms": 4.5}
                ax.plot([min(ends), max(ends)], [y, y], lw=1.2, **line)
        every = sorted({n for own in by.values() for line in own.values() for n in line})
        draw.ranks_axis(ax, every)
        ax.set_xlabel("last ranks N that pay")
        ax.set_yticks(range(len(found)), [name.replace(", ", "\n") for name in found], size=8)
        ax.invert_yaxis()
        _note(ax)
        draw.legend(ax, handles=[draw.handle(looks[method], method) for method in methods])

    return [
        Picture(
            "projection-pays",
            "Projection: where every method stops paying",
            "Projection, not measured. Up to there every doubling of the ranks shortens an epoch "
            "as the table's heading says; lines: least to most over the sizes of networks.",
            "Dot plot: projected last number of ranks that pays, by network, for "
            f"{', '.join(map(names.shown, methods))}. Values are under Data.",
            draw.svg(on, height=1.6 + 0.5 * len(found)),
            (Finding(text),),
        )
    ]


def _whys(by: Mapping[Key, Lines]) -> list[Part]:
    """What the time of ours goes into by ranks, over the first network of the largest size."""
    key = max((key for key in by if not computer_of(key)), key=lambda key: key[1], default=None)
    if key is None:
        return []
    key = next(one for one in by if one[1] == key[1] and not computer_of(one))
    own = by[key][ours(by[key])]
    reason = why(own)
    if not reason or any("messages" not in row for row in own.values()):
        return []

    def on(ax: Any) -> None:
        every = sorted(own)
        low = [0.0] * len(every)
        for label, colour, hatch, share in (
            ("computing", figures.BLUE, "", lambda r: 1 - r["messages"] - r["waiting"]),
            ("messages", figures.RED, "\\\\\\", lambda r: r["messages"]),
            ("waiting for the slowest", figures.ORANGE, "xxx", lambda r: r["waiting"]),
        ):
            high = [100 * share(own[n]) for n in every]
            look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": draw.PAPER}
            ax.bar(range(len(every)), high, bottom=low, width=0.8, lw=0.3, label=label, **look)
            low = [a + b for a, b in zip(low, high, strict=True)]
        last = limit(own)
        if last in every:
            ax.axvline(every.index(last) + 0.5, color=draw.INK, lw=1.2, ls="--")
        ax.set_xticks(range(len(every)), [str(n) for n in every], size=7, rotation=45)
        ax.set_xlabel("ranks N")
        ax.set_ylabel("projected share of the time, %")
        ax.grid(visible=False, axis="x")
        _note(ax)
        draw.legend(ax)

    return [
        Picture(
            "projection-why",
            f"Projection: what the time goes into, {_where(key)}",
            "Projection, not measured; the default method. Dashed: beyond it more do not pay.",
            "Stacked bars: projected shares of computing, messages and waiting by ranks; "
            f"the default method {reason}.",
            draw.svg(on, height=3.6),
            (Finding(f"Projection, {_where(key)}: ours {reason}.", key=True),),
        )
    ]


def _reach(computer: str, by: Mapping[Key, Lines]) -> list[Part]:
    """Efficiency of ours by network at the largest size; of all methods where there is one."""
    most = max(size for _, size in by)
    some = {key[0]: methods for key, methods in by.items() if key[1] == most}
    lines = {name.partition(", ")[0]: methods[ours(methods)] for name, methods in some.items()}
    reach = {name: last_ranks(own) for name, own in lines.items()}
    every = sorted({n for own in lines.values() for n in own})
    text = ", ".join(f"{'all' if n == every[-1] else n} over {name}" for name, n in reach.items())

    def on(ax: Any) -> None:
        for number, (name, own) in enumerate(lines.items()):
            colour = figures.COLOURS[number % len(figures.COLOURS)].replace("#000000", draw.INK)
            look = draw.Style(colour, "osD^v"[number % 5], figures.STYLES[number % 7])
            y = [100 * own[n]["efficiency"] for n in sorted(own)]
            draw.line(ax, sorted(own), y, look, name)
        ax.axhline(100 * HALF, color=draw.INK, lw=0.7, ls="--")
        draw.ranks_axis(ax, every)
        ax.set_ylim(0, None)
        ax.set_ylabel("projected efficiency, %")
        _note(ax)
        draw.legend(ax, columns=2)

    where = f"{most:,} parameters, {computer or 'cores as they were measured'}"
    return [
        Picture(
            f"projection-{slug(where)}",
            f"Projection: efficiency of the default method, {where}",
            f"Projection, not measured. Dashed: {100 * HALF:.0f} percent.",
            f"Line plot: projected efficiency against ranks over {', '.join(lines)}. Values are "
            "under Data.",
            draw.svg(on, height=3.8),
            (
                Finding(
                    f"Projection, {where}: ours stays at {100 * HALF:.0f} percent or more up to "
                    f"N = {text}."
                ),
            ),
        )
    ]


def _table(key: Key, methods: Lines) -> Table:
    every = sorted({n for own in methods.values() for n in own})

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        return f"{digits(row['seconds_per_epoch'])} ({percent(row['efficiency'])})"

    body = [[names.shown(m), *(cell(own.get(n)) for n in every)] for m, own in methods.items()]
    caption = f"Projection: {_where(key)}: seconds per epoch (efficiency, %) by ranks"
    return Table(caption, ["method", *(f"N = {n}" for n in every)], body)


def _limits(caption: str, by: Mapping[Key, Lines], found: Callable[[dict[int, Row]], str]) -> Table:
    methods = list(dict.fromkeys(method for own in by.values() for method in own))
    body = [
        [f"{key[1]:,}", key[0], *(found(own[m]) if m in own else "-" for m in methods)]
        for key, own in sorted(by.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    header = ["parameters", "network", *map(names.shown, methods)]
    return Table(caption, header, body, text=2)
