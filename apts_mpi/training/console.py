"""What a run shows to people: progress and warnings, from rank 0 alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from apts_mpi.comm.communicator import Comm

JUDGED = {"val": "validation", "test": "test"}  # what splits are called for people


class Console:
    """Lines for people, from rank 0 alone: a progress bar on a terminal, plain lines elsewhere."""

    LINES = 20  # plain progress lines of a whole run, about

    def __init__(self, comm: Comm) -> None:
        self._speaks = comm.rank == 0
        self._bar: tqdm[Any] | None = None
        self._total = self._next = 0.0

    def say(self, line: str) -> None:
        """One line on standard error, beside the bar if there is one."""
        if self._speaks:
            tqdm.write(line, file=sys.stderr)

    def start(self, epochs: float) -> None:
        """Progress towards ``epochs`` begins."""
        self._total, self._next = epochs, 0.0
        if self._speaks and sys.stderr.isatty():
            form = "{l_bar}{bar}| {n:.1f}/{total:.0f} epochs [{elapsed}<{remaining}]{postfix}"
            self._bar = tqdm(total=epochs, bar_format=form, file=sys.stderr)

    def progress(self, row: dict[str, Any]) -> None:
        """Show a row of the metrics."""
        if not self._speaks:
            return
        epoch, accuracy = row["epoch"], row.get("test_accuracy")
        if self._bar is not None:
            self._bar.update(min(epoch, self._total) - self._bar.n)
            if row.get("val_accuracy") is not None:
                accuracy = row["val_accuracy"]
            if accuracy is not None:
                self._bar.set_postfix(loss=f"{row['loss']:.4f}", accuracy=f"{accuracy:.4f}")
            elif row.get("test_loss") is not None:
                self._bar.set_postfix(loss=f"{row['loss']:.4f}", test=f"{row['test_loss']:.4f}")
        elif row.get("test_loss") is not None and (epoch >= self._next or epoch >= self._total):
            self._next = epoch + self._total / self.LINES
            radius = row.get("radius")
            self.say(
                f"epoch {epoch:6.1f}  iteration {row['iteration']:4d}  "
                f"loss {shown_loss(row, 'loss')}  "
                + "  ".join(_judged(row, split) for split in JUDGED if f"{split}_loss" in row)
                + (f"  radius {radius:.2e}" if radius is not None else "")
            )

    def stop(self) -> None:
        """Progress ends."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def shown_loss(figures: dict[str, Any], name: str) -> str:
    """A loss in text; that of a regression may be of any size, as its targets are."""
    value = figures[name]
    if value is None:
        return "-"
    regression = any(each.endswith("r2") for each in figures)
    return f"{value:.5g}" if regression else f"{value:.5f}"


def _judged(row: dict[str, Any], split: str) -> str:
    """What a row says of a split."""
    name, loss = JUDGED[split], shown_loss(row, f"{split}_loss")
    if row.get(f"{split}_perplexity") is not None:
        perplexity = row[f"{split}_perplexity"]
        return f"{name} loss {row[f'{split}_loss']:.4f}  perplexity {perplexity:.2f}"
    if row.get(f"{split}_accuracy") is not None:
        return f"{name} accuracy {row[f'{split}_accuracy']:.4f}"
    r2 = row.get(f"{split}_r2")
    return f"{name} loss {loss}" + (f"  R2 {r2:.4f}" if r2 is not None else "")


def judged(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of an evaluation for people, each with its name, losses left out.

    What is best is only reported for the validation samples: chosen by the test samples it would be
    better than the network is on others.
    """
    rows, epoch = [], figures.get("best_epoch")
    for split, name in JUDGED.items():
        for kind, text, digits in (
            ("accuracy", "accuracy", 4),
            ("perplexity", "perplexity", 3),
            ("r2", "R2", 4),
        ):
            value, best = figures.get(f"{split}_{kind}"), figures.get(f"best_{split}_{kind}")
            if value is None:
                continue
            figure = f"{value:.{digits}f}"
            if best is not None and epoch is not None:
                figure += f"  (best {best:.{digits}f}, epoch {epoch:.1f})"
            rows.append((f"{name} {text}", figure))
    if None not in (figures.get("best_val_loss"), epoch):
        loss = shown_loss(figures, "best_val_loss")
        rows.append(("best validation loss", f"{loss}, epoch {epoch:.1f}"))
    return rows


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of them, in two columns."""
    known = list(rows)
    width = max(len(name) for name, _ in known)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in known)


class RankLog(logging.Handler):
    """The package's warnings as one line each, from rank 0 alone: all ranks see the same ones."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record."""
        self._console.say(f"{record.levelname.lower()}: {record.getMessage()}")
