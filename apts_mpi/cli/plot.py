"""``plot``: learning curves, radius, ratio and bytes of runs side by side."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError, fault, writing
from apts_mpi.files import sealed
from apts_mpi.training.console import JUDGED
from apts_mpi.training.run_directory import METRICS, SUMMARY

PICTURES = (".png", ".svg", ".pdf")
AXES = {  # what runs are drawn over: key of a row, and the label
    "epoch": ("passes", "epochs (passes over the data)"),
    "work": ("epoch", "work (sample gradients per training sample)"),
    "iteration": ("iteration", "outer iterations"),
    "seconds": ("seconds", "time (s)"),
    "bytes": ("bytes", "sent per rank (MB)"),
}
_SUMS = {"seconds": 1.0, "bytes": 1e-6}  # of rows, in this unit
# Okabe and Ito's colours, which the colour-blind tell apart; lines differ in dashes besides.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)))
_LOOK: Any = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "plot"}
_SCORES = (("accuracy", "accuracy"), ("perplexity", "perplexity"), ("r2", "R2"))


@dataclass(frozen=True)
class Drawn:
    """A run as it is drawn: its name, its rows, its summary if it has ended."""

    name: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def curve(self, key: str, over: str) -> tuple[list[float], list[float]]:
        """The rows that have a figure: where they are on the axis, and the figure."""
        found = [
            (x, y)
            for x, row in zip(self.along(over), self.rows, strict=True)
            if (y := row.get(key)) is not None
        ]
        return [x for x, _ in found], [float(y) for _, y in found]

    def along(self, key: str) -> list[float]:
        """The figure of every row; seconds and bytes so far."""
        values = [float(row.get(key) or 0.0) for row in self.rows]
        if key not in _SUMS:
            return values
        total, sums = 0.0, []
        for value in values:
            total += value * _SUMS[key]
            sums.append(total)
        return sums


def plot(runs: Sequence[Path], out: Path | None, over: str) -> str:
    """Draw runs; returns what to print.

    Args:
        out: a picture, or a page; default ``plot.png``, of one run in its directory.
        over: of ``AXES``.

    Raises:
        InputError: a run has no metrics, matplotlib is missing, or the file cannot be written.
    """
    path = out or (runs[0] / "plot.png" if len(runs) == 1 else Path("plot.png"))
    kind = path.suffix.lower()
    if kind not in (*PICTURES, ".html"):
        known = ", ".join((*PICTURES, ".html"))
        raise InputError(f"--out {path}: {kind or 'no ending'} is none of {known}")
    if find_spec("matplotlib") is None:
        raise InputError(
            "plot: matplotlib is not installed; install it with `pip install matplotlib` (or "
            "'apts_mpi[plot]')"
        )
    drawn = _read(runs)
    made = _picture(drawn, over, "svg" if kind == ".html" else kind[1:])
    content = _page(drawn, made.decode()).encode() if kind == ".html" else made
    with writing(f"--out {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(path, content)
    return str(path)


def _read(runs: Sequence[Path]) -> list[Drawn]:
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [_run(run, name) for run, name in zip(runs, names, strict=True)]


def _run(run: Path, name: str) -> Drawn:
    path, remedy = run / METRICS, "name a run directory"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        summary = json.loads((run / SUMMARY).read_text()) if (run / SUMMARY).is_file() else {}
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})", remedy) from error
    except ValueError as error:
        raise fault(path, f"is no file of metrics ({error})", remedy) from error
    if not rows or not all(isinstance(row, dict) and "passes" in row for row in rows):
        what = "has no rows yet" if not rows else "was written by an earlier version"
        raise fault(path, what, remedy)
    return Drawn(name, rows, summary)


def _picture(runs: Sequence[Drawn], over: str, kind: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    key, label = AXES[over]
    panels = _panels(runs)
    across = min(len(panels), 2)
    down = math.ceil(len(panels) / across)
    with plt.rc_context(_LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        size = (4.6 * across, 2.7 * down + 0.25 * len(runs) + 0.2)
        figure, axes = plt.subplots(
            down, across, figsize=size, layout="constrained", sharex=True, squeeze=False
        )
        for ax, (title, what, scale) in zip(axes.flat, panels, strict=False):
            _panel(ax, runs, what, key, scale)
            ax.set_ylabel(title)
        for ax in axes.flat[len(panels) :]:  # one at most, which has room for the legend
            ax.set_axis_off()
            ax.legend(handles=_legend(runs), loc="center", frameon=False)
        for column in range(across):
            shown = [axes[row][column] for row in range(down) if axes[row][column].axison]
            shown[-1].set_xlabel(label)
            shown[-1].tick_params(labelbottom=True)
        if len(panels) == across * down:
            columns = 2 if max(len(run.name) for run in runs) > 24 else 4
            figure.legend(handles=_legend(runs), loc="outside lower center", ncols=columns)
        drawn = io.BytesIO()
        figure.savefig(
            drawn, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {}
        )
        plt.close(figure)
    return drawn.getvalue()


# A panel's title, its curves (key, label, marks each evaluation), and whether it is logarithmic.
Curves = list[tuple[str, str]]


def _panels(runs: Sequence[Drawn]) -> list[tuple[str, Curves, bool]]:
    """Those that some run has figures for."""
    keys = {key for run in runs for row in run.rows for key, v in row.items() if v is not None}
    splits = [(f"{split}_", name) for split, name in JUDGED.items()]
    losses = [("loss", "training"), *((f"{s}loss", name) for s, name in splits)]
    panels: list[tuple[str, Curves, bool]] = [("loss", losses, True)]
    for score, title in _SCORES:
        panels.append((title, [(f"{s}{score}", name) for s, name in splits], False))
    panels.append(("trust-region radius", [("radius", "")], True))
    panels.append(("ratio (actual / promised)", [("rho", "")], False))
    panels.append(("sent per rank (MB)", [("bytes", "")], False))
    found = ((t, [c for c in curves if c[0] in keys], log) for t, curves, log in panels)
    return [(title, curves, log) for title, curves, log in found if curves]


def _panel(ax: Any, runs: Sequence[Drawn], curves: Curves, over: str, log: bool) -> None:
    positive = True
    for number, run in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        for k, (key, _) in enumerate(curves):
            x, y = run.curve(key, over)
            y = run.along("bytes") if key == "bytes" else y
            positive = positive and all(each > 0 for each in y)
            few = len(x) <= 25
            style = {"color": colour, "lw": 1.4, "ls": _dash(key), "zorder": 3 + k}
            if key == "loss" and len(curves) > 1:  # of minibatches: noisy, and behind the others
                style |= {"lw": 0.9, "alpha": 0.55}
            ax.plot(x, y, marker="o" if few else None, ms=2.5, **style)
    if curves[0][0] == "rho":
        ax.axhline(1.0, color="#777777", lw=0.8, ls=(0, (2, 2)))
        _within(ax, [y for run in runs for y in run.curve("rho", over)[1]])
    if log and positive:
        ax.set_yscale("log")
        _ticks(ax)
    ax.grid(color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _within(ax: Any, values: Sequence[float]) -> None:
    """A range that a few ratios far off do not take for themselves."""
    known = sorted(values)
    if known:
        low, high = known[len(known) // 50], known[-1 - len(known) // 50]
        edge = 0.1 * max(high - low, 0.5)
        ax.set_ylim(min(low, 0.0) - edge, max(high, 1.0) + edge)


def _ticks(ax: Any) -> None:
    """Plain numbers; at 1, 2 and 5 of a decade where the axis spans few."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = ax.get_ylim()
    if high / low < 100:
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _dash(key: str) -> Any:
    """Training, and what has no split, solid; validation dashed; test dotted."""
    return _DASHES[1 if key.startswith("val_") else 2 if key.startswith("test_") else 0]


def _legend(runs: Sequence[Drawn]) -> list[Any]:
    """What colours are, and what dashes are."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_COLOURS[k % len(_COLOURS)], lw=2.5, label=_short(run.name))
        for k, run in enumerate(runs)
    ]
    keys = {key for run in runs for row in run.rows for key in row}
    for split, name in (("", "training"), *((f"{s}_", name) for s, name in JUDGED.items())):
        if f"{split}loss" in keys:
            dash = _dash(f"{split}loss")
            handles.append(Line2D([], [], color="#444444", lw=1.4, ls=dash, label=name))
    return handles


def _short(name: str) -> str:
    name = name if len(name) <= 48 else f"{name[:22]}...{name[-23:]}"
    return name.replace("$", r"\$")  # no mathematics


_ROWS = (  # of the page's table: what it is called, and what it is made of
    ("optimizer", lambda s: s["optimizer"]),
    ("local solver", lambda s: s.get("local_solver") or "-"),
    ("network", lambda s: f"{s['network']}, {s['parameters']:,} parameters"),
    ("data", lambda s: s["dataset"]),
    ("ranks", lambda s: str(s["ranks"])),
    ("epochs", lambda s: f"{s['passes']:.1f}"),
    ("outer iterations", lambda s: str(s["outer_iterations"])),
    ("training loss", lambda s: _number(s.get("train_loss"))),
    *(
        (f"{name} {title}", lambda s, key=f"{split}_{figure}": _number(s.get(key)))
        for split, name in JUDGED.items()
        for figure, title in (("loss", "loss"), *_SCORES)
    ),
    ("seconds", lambda s: f"{s['seconds_total']:.1f}"),
    ("MB sent per rank", lambda s: f"{s['bytes_allreduced'] / 1e6:.1f}"),
)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}"


def _page(runs: Sequence[Drawn], svg: str) -> str:
    """One page that needs no other file."""
    image = base64.b64encode(svg.encode()).decode()
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    body = []
    for name, cell in _ROWS:
        cells = [cell(run.summary) if run.summary else "not ended" for run in runs]
        if any(each != "-" for each in cells):
            row = "".join(f"<td>{html.escape(each)}</td>" for each in cells)
            body.append(f"<tr><th>{name}</th>{row}</tr>")
    title = html.escape(", ".join(run.name for run in runs))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em }}
img {{ width: 100% }}
table {{ border-collapse: collapse }}
th, td {{ padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left }}
</style>
<h1>{title}</h1>
<img alt="Curves of the runs" src="data:image/svg+xml;base64,{image}">
<table><tr><th></th>{head}</tr>
{"".join(body)}
</table></html>
"""
