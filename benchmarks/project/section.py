"""What the rows of ``project`` say: what was fitted, every prediction, and the projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from benchmarks.harness import drawing as draw
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
from benchmarks.harness.units import digits, percent
from benchmarks.project.grid import pays_to
from benchmarks.project.proof import drawn, proof
from benchmarks.project.words import MODEL

HALF = 0.5  # a fair efficiency
FITTED, GUESSED = ("costs", "messages"), ("prediction", "projection")
NO_WORDS: Row = {"assumptions": [], "left": [], "setup": ""}
Key = tuple[str, int]  # network, and who computes where that is assumed; parameters
Lines = dict[str, dict[int, Row]]  # by method and ranks


def section(rows: Sequence[Row], options: object = None) -> Section:
    """The model, proved and then projected."""
    kinds: dict[str, list[Row]] = {name: [] for name in ("words", *FITTED, *GUESSED)}
    for row in rows:
        s = row["settings"]
        kinds[s.get("what", s["kind"])].append(row)
    words = kinds["words"][0] if kinds["words"] else NO_WORDS
    foot = f"{words['setup']} Repeat: `python -m benchmarks project`."
    below = [_fitted(*(kinds[name] for name in FITTED)), *sections(kinds, words)]
    title = "A cost model, proved where it can be, then projected"
    return Section(title, [MODEL], below, [foot.strip()])


def sections(rows: Mapping[str, list[Row]], words: Row = NO_WORDS) -> list[Section]:
    """Those of the page of ``report`` too, of the rows by kind."""
    found = (proof(rows["prediction"], words["left"]), projections(rows["projection"], words))
    return [one for one in found if one is not None]


def _fitted(costs: Sequence[Row], messages: Sequence[Row]) -> Section:
    def cell(row: Row, name: str, factor: float, form: str) -> str:
        return "-" if row[name] is None else f"{factor * row[name]:{form}}"

    def table(header: str, names: Sequence[str], rows: Sequence[Row], how: Sequence[Any]) -> Table:
        body = [
            [
                *(f"{v:g}" if isinstance(v, float) else v for v in map(row["settings"].get, names)),
                *(cell(row, *one) for one in how),
            ]
            for row in rows
        ]
        return Table("", header.split("; "), body, text=2)

    own = table(
        "hidden layers; method; batch; per sample gradient, us; GFLOP/s; algebra per step, ms; "
        "per iteration, ms; data per sample, us; besides, ms; slowest of two, +%",
        ("hidden", "method", "batch"),
        costs,
        (
            *(("gradient", 1e6, ".2f"), ("flops", 1e-9, ".1f"), ("step", 1e3, ".3f")),
            *(("join", 1e3, ".2f"), ("sample", 1e6, ".3f"), ("other", 1e3, ".2f")),
            ("spread", 100, ".1f"),
        ),
    )
    sent = table(
        "link; MPI; hosts; ranks; latency, us; MB/s; median residual, %",
        ("link", "mpi", "hosts", "ranks"),
        messages,
        (("latency", 1e6, ".1f"), ("bandwidth", 1e-6, ".0f"), ("residual", 100, ".0f")),
    )
    return Section("Fitted", [own, sent])


# ---- projections -------------------------------------------------------------------------------


def projections(rows: Sequence[Row], words: Row = NO_WORDS) -> Section | None:
    """What the model says of machines that were not measured; labelled as such throughout."""
    if not rows:
        return None
    grouped: dict[Key, Lines] = {}
    for row in rows:
        s = row["settings"]
        key = (s["network"], s["parameters"])
        grouped.setdefault(key, {}).setdefault(s["method"], {})[s["ranks"]] = row
    parts: list[Part] = [
        Text(
            "Every number and curve of this section is a projection of the cost model, not a "
            "measurement. Efficiency: time per epoch of the same method on one rank over N times "
            "that on N; - where a minibatch would have fewer samples than ranks."
        )
    ]
    if words["assumptions"]:
        first, *points = words["assumptions"]
        parts += [Markdown(first), Markdown(bullets(points))]
    whole = Section("Projection: beyond what was measured", parts)
    for network in dict.fromkeys(name for name, _ in grouped):
        one = Section(f"Projection: {network}", folded=bool(whole.below))
        own = sorted(key for key in grouped if key[0] == network)
        one.parts += drawn([_picture(key, grouped[key]) for key in own])
        one.parts += [_table(key, grouped[key]) for key in own]
        whole.below.append(one)
    fair = f"Projection: most ranks with an efficiency of at least {100 * HALF:.0f} percent"
    parts.append(_limits(fair, grouped, lambda own: str(last_ranks(own))))
    pays = [row["pays"] for row in rows if row.get("pays")]
    if pays:
        caption = (
            "Projection: the last ranks that pay, to which every doubling makes an epoch at least "
            f"{pays[0]:g} times as fast (>= the last that was projected; * it has no sample beyond)"
        )
        last = max(row["settings"]["ranks"] for row in rows)
        parts.append(_limits(caption, grouped, partial(_paying, last)))
    return whole


def last_ranks(own: dict[int, Row]) -> int:
    """The ranks up to which efficiency is fair; 1 where it never is."""
    fair = takewhile(lambda ranks: own[ranks]["efficiency"] >= HALF, sorted(own))
    return max(fair, default=1)


def _limit(own: dict[int, Row]) -> int | None:
    """The last ranks that pay, where the rows say what does."""
    gain = next(iter(own.values())).get("pays")
    epoch = {ranks: row["seconds_per_epoch"] for ranks, row in own.items()}
    return pays_to(epoch, gain) if gain else None


def _paying(last: int, own: dict[int, Row]) -> str:
    limit = _limit(own)
    if limit is None or limit < max(own):
        return "-" if limit is None else str(limit)
    return f">= {limit}" if limit == last else f"{limit}*"


def _where(key: Key) -> str:
    return f"{key[0]}, {key[1]:,} parameters"


def _picture(key: Key, methods: Lines) -> Picture:
    looks = draw.styles(list(methods))
    reach = {method: last_ranks(own) for method, own in methods.items()}
    best = max(reach, key=lambda method: reach[method])
    most = max(n for own in methods.values() for n in own)
    reached = ", ".join(f"{method} {'all' if n == most else n}" for method, n in reach.items())

    def on(axes: Any) -> None:
        every = sorted({n for own in methods.values() for n in own})
        for ax, name, factor in zip(
            axes, ("efficiency", "seconds_per_epoch"), (100, 1), strict=True
        ):
            for method, own in methods.items():
                look, x, limit = looks[method], sorted(own), _limit(own)
                y = [factor * own[n][name] for n in x]
                draw.line(ax, x, y, look, method)
                if limit is not None:
                    y = [factor * own[limit][name]]
                    ax.plot([limit], y, "o", color=look.colour, ms=9, mfc="none")
            draw.ranks_axis(ax, every)
            ax.text(
                0.98, 0.97, "projection", transform=ax.transAxes, ha="right", va="top", alpha=0.6
            )
        axes[0].axhline(100 * HALF, color=draw.INK, lw=0.7, ls="--")
        axes[0].set_ylim(0, None)
        axes[0].set_ylabel("projected efficiency, %")
        axes[0].set_xlabel("")
        axes[1].set_yscale("log")
        draw.log_axis(axes[1].yaxis)
        axes[1].set_ylabel("projected s per epoch")
        draw.legend(axes[0])

    return Picture(
        f"projection-{slug(_where(key))}",
        f"Projection: {_where(key)}",
        f"Projection, not measured. Lines: the model's, which is defined at every N. Dashed: "
        f"{100 * HALF:.0f} percent. Circles: the last ranks that pay.",
        f"Line plots: projected efficiency and seconds per epoch against ranks for "
        f"{', '.join(methods)}. Values are in the table below.",
        draw.svg(on, height=6.4, panels=2),
        (
            Finding(
                f"Projection: efficiency stays at {100 * HALF:.0f} percent or more up to N = "
                f"{reached} (furthest: {best})."
            ),
        ),
    )


def _table(key: Key, methods: Lines) -> Table:
    every = sorted({n for own in methods.values() for n in own})

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        return f"{digits(row['seconds_per_epoch'])} ({percent(row['efficiency'])})"

    body = [[method, *(cell(own.get(n)) for n in every)] for method, own in methods.items()]
    caption = f"Projection: {_where(key)}: seconds per epoch (efficiency, %) by ranks"
    return Table(caption, ["method", *(f"N = {n}" for n in every)], body, folded=True)


def _limits(
    caption: str, grouped: Mapping[Key, Lines], limit: Callable[[dict[int, Row]], str]
) -> Table:
    methods = list(dict.fromkeys(method for own in grouped.values() for method in own))
    body = [
        [f"{key[1]:,}", key[0], *(limit(own[m]) if m in own else "-" for m in methods)]
        for key, own in sorted(grouped.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    return Table(caption, ["parameters", "network", *methods], body, text=2)
