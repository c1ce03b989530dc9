"""What the rows of ``network`` say: time to an accuracy over narrow links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness import names, tables
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.units import digits, seconds, times
from benchmarks.messages.network.cases import NEVER, Case, Entry, cases
from benchmarks.messages.network.plan import DDP

_RANGES = {  # columns of the table: what of the rows, and its factor
    "s to target": ("seconds_to_target", 1.0),
    "epochs to target": ("epochs_to_target", 1.0),
    "messages to target": ("messages_to_target", 1.0),
    "MB to target": ("bytes_to_target", 1e-6),
    "s per epoch": ("seconds_per_epoch", 1.0),
    "messages per epoch": ("messages_per_epoch", 1.0),
    "MB per epoch": ("bytes_per_epoch", 1e-6),
}


def section(every: Sequence[Row], options: object = None) -> Section | None:
    """All there is to say; None where there are no rows.

    Args:
        every: rows of runs, and of those that tuned. options: of the command, which names the
            set-up too; the page of ``report`` has it elsewhere.
    """
    rows = [row for row in every if row["settings"]["benchmark"] == "network"]
    found = cases(rows)
    if not found:
        return None
    target = ", ".join(f"{100 * one:g}" for one in sorted({case.target for case in found}))
    data = ", ".join(sorted({names.shown(row.get("data", "mnist")) for row in rows}))
    mpi = ", ".join(sorted({names.mpi(str(row["mpi"])) for row in rows if "mpi" in row}))
    whole = Section(
        "Training over narrow links",
        [
            Text(
                f"Time to a test accuracy of {target} percent ({data}) between hosts whose link is "
                "limited: network namespaces of one machine, one rank and one thread each. Ours "
                f"uses Open MPI over TCP with the settings {mpi or 'that are its defaults'}, "
                "PyTorch's DistributedDataParallel (DDP) gloo. Muon there is torch's, but for its "
                "polar factors in float32, as many processors have no bfloat16 instructions. "
                "Start-up and evaluation are not in the time; what automatic local steps measure "
                "first is in it. Each batch (of all ranks) has the learning rate that needed least "
                "work without a link, and each link the batch that was soonest, by the time "
                "itself, which favours what has more to choose from; Adam over our own messages "
                "has those of DDP. A star marks one at the edge of what was tried. Times are "
                "medians over repetitions, curves the median one."
            )
        ],
    )
    for network in dict.fromkeys(case.network for case in found):
        own = [case for case in found if case.network == network]
        parts: list[Part] = [_against(case, "seconds") for case in own]
        if any(_has(entry, "bytes") for case in own for entry in case.entries):
            parts.append(_against(own[0], "bytes"))
        used = [row for case in own for entry in case.entries for row in entry.rows]
        if any(row.get("oversubscribed") for row in used):
            parts.append(
                Text(
                    "Oversubscribed: some of these hosts have more ranks than the machine has "
                    "cores, so that compute takes longer than on hosts of their own."
                )
            )
        parts.append(_table(own, every))
        whole.below.append(Section(f"Narrow links: {network}", parts))
    known = [row for row in rows if "versions" in row]
    if options is not None and known:
        whole.foot.append(tables.setup(known))
    return whole


def _findings(case: Case) -> list[Finding]:
    """Ours against the outside reference."""
    goal, found = f"{100 * case.target:g} percent", []
    outside = next((entry for entry in case.entries if entry.method == DDP), None)
    # The defaults first; what is chosen by measurement beside them, not in their place.
    for entry in case.entries:
        if not entry.method.startswith("apts") or entry.reached is None:
            continue
        text = (
            f"Over {names.shown(case.link)} ({case.network}) {names.shown(entry.method)} reaches "
        )
        text += f"{goal} in {seconds(entry.reached)}"
        gain = 1.0
        if outside and outside.reached:
            gain = outside.reached / entry.reached
            how = f"{times(max(gain, 1 / gain))} times {'later' if gain < 1 else 'sooner'}"
            text += f", {names.shown(DDP)} in {seconds(outside.reached)}: {how}"
        elif outside:
            text += f"; {names.shown(DDP)} never did"
        found.append(Finding(f"{text}.", warning=gain < 1, key=True))
    return found or [
        Finding(f"Over {names.shown(case.link)}, ours never reached {goal}.", warning=True)
    ]


def _has(entry: Entry, axis: str) -> bool:
    curve = _typical(entry).get("curve", {})
    values = curve.get(axis)
    return isinstance(values, list) and len(values) == len(curve["test_accuracy"])


def _typical(entry: Entry) -> Row:
    """The run in the middle by its time to the target."""
    own = [row for row in entry.rows if "curve" in row] or entry.rows
    order = sorted(own, key=lambda row: row.get("seconds_to_target") or NEVER)
    return order[(len(order) - 1) // 2]


def _against(case: Case, axis: str) -> Picture:
    looks = draw.styles([entry.method for entry in case.entries])
    shown = [entry for entry in case.entries if _has(entry, axis)]

    def on(ax: Any) -> None:
        lowest = 100 * case.target
        ax.set_xscale("log")
        for entry in shown:
            curve, look = _typical(entry)["curve"], looks[entry.method]
            x = np.array(curve[axis], dtype=float) / (1e6 if axis == "bytes" else 1.0)
            y = 100 * np.array(curve["test_accuracy"], dtype=float)
            good = x > 0
            every = max(1, good.sum() // 8)
            draw.line(ax, x[good], y[good], look, entry.method, markevery=int(every))
            lowest = min(lowest, float(y[good][-1])) if good.any() else lowest
        ax.axhline(100 * case.target, color=draw.INK, lw=0.7, ls="--")
        ax.set_ylim(max(0.0, min(lowest, 100 * case.target) - 7), None)
        draw.log_axis(ax.xaxis)
        ax.set_xlabel("time, s" if axis == "seconds" else "payload of a rank, MB")
        ax.set_ylabel("test accuracy, %")
        draw.legend(ax)

    what, link = "time" if axis == "seconds" else "payload", names.shown(case.link)
    found = _findings(case) if axis == "seconds" else _bytes_findings(case)
    return Picture(
        f"network-{slug(case.title)}-{axis}",
        f"Accuracy against {what}" + (f", {link}" if axis == "seconds" else f" (run over {link})"),
        "Runs are measured at their evaluations (marks at some), lines join what one run went "
        "through. Dashed: the target.",
        f"Line plot, {what} logarithmic: test accuracy against {what} for "
        f"{', '.join(names.shown(entry.method) for entry in shown)}, {case.title}.",
        draw.svg(on, height=4.0),
        tuple(found),
    )


def _bytes_findings(case: Case) -> list[Finding]:
    sent = {e.method: value for e in case.entries if (value := e.middle("bytes_to_target"))}
    if not sent:
        return []
    least = min(sent, key=lambda method: sent[method])
    most = max(sent, key=lambda method: sent[method])
    text = (
        f"Fewest bytes to the target: {names.shown(least)}, {digits(sent[least] / 1e6)} MB per rank"
    )
    if most != least:
        text += f"; most: {names.shown(most)}, {digits(sent[most] / 1e6)} MB"
    return [Finding(text + ".")]


def _table(own: Sequence[Case], every: Sequence[Row]) -> Table:
    """A line per link and method of a network."""
    header = ["hosts", "link", "method", "rate", "batch", "local steps", "runs"]
    header += [f"times sooner than {names.shown(DDP)}", *_RANGES]
    body = []
    for case in own:
        outside = {entry.method: entry.reached for entry in case.entries}.get(DDP)
        for entry in case.entries:
            gain = times(outside / entry.reached) if outside and entry.reached else "-"
            steps = sorted(
                {str(row["local_steps"]) for row in entry.rows if row.get("local_steps")}
            )
            body.append(
                [
                    *(str(case.hosts), names.shown(case.link), names.shown(entry.method)),
                    *_chosen(entry, every),
                    *(", ".join(steps) or "-", str(len(entry.rows)), gain),
                    *(entry.range_of(name, factor) for name, factor in _RANGES.values()),
                ]
            )
    caption = f"{own[0].network}: medians [least, most]"
    return Table(caption, header, body, text=3)


def _chosen(entry: Entry, every: Sequence[Row]) -> tuple[str, str]:
    """Learning rate and minibatch; with a star where none beyond was tried."""
    s, text = entry.settings, {}
    tuned = [row["settings"] for row in every if row["settings"]["benchmark"] == "network-tune"]
    same = [t for t in tuned if t["hidden"] == s["hidden"]]
    # What is not tuned by itself has what the reference was tuned to.
    grid = [t for t in same if t["method"] == s["method"]] or [
        t for t in same if t["method"] == DDP
    ]
    for name in ("lr", "batch"):
        value = s.get(name)
        text[name] = "-" if value is None else f"{value:g}"
        tried = {t[name] for t in grid}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            text[name] += "*"
    if s.get("batch") is None and "rank_batch" in entry.rows[0]:
        text["batch"] = str(entry.rows[0]["rank_batch"] * s["hosts"])
    if entry.tried > 1:
        text["lr"] += f" (best of {entry.tried})"
    return text["lr"], text["batch"]


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = section([*rows["network"], *rows["tuning"]])
    return [] if found is None else [found]
