"""What a run shows, and what it leaves behind in numbers: progress, summary, closing table."""

from __future__ import annotations

import hashlib
import logging
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from tqdm import tqdm

import apts_mpi
from apts_mpi.clock import COMMUNICATION
from apts_mpi.comm import Comm, library_version
from apts_mpi.config import BASELINES

if TYPE_CHECKING:
    from apts_mpi.training import Training

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
    """What a row tells of a split."""
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

    What is best is only told of the validation samples: chosen by the test samples it would be
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
            told = f"{value:.{digits}f}"
            if best is not None and epoch is not None:
                told += f"  (best {best:.{digits}f}, epoch {epoch:.1f})"
            rows.append((f"{name} {text}", told))
    if None not in (figures.get("best_val_loss"), epoch):
        loss = shown_loss(figures, "best_val_loss")
        rows.append(("best validation loss", f"{loss}, epoch {epoch:.1f}"))
    return rows


class RankLog(logging.Handler):
    """The package's warnings as one line each, from rank 0 alone: all ranks see the same ones."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record."""
        self._console.say(f"{record.levelname.lower()}: {record.getMessage()}")


def versions() -> dict[str, str]:
    """Versions of all that a result depends on."""
    return {
        "apts_mpi": apts_mpi.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mpi4py": version("mpi4py"),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "mpi": library_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def code_digest() -> str:
    """SHA-256 of the package's own source, so that ranks that run another one are noticed."""
    root, digest = Path(apts_mpi.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def git_commit() -> str | None:
    """Commit of the checkout the package runs from; None elsewhere.

    Read from the files: to start a process from an MPI rank is not safe on every network.
    """
    git = Path(apts_mpi.__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(" " + name):
                return line.split()[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None


def summarise(
    training: Training, *, seconds_total: float, results: dict[str, Any]
) -> dict[str, Any]:
    """The contents of ``summary.json``; ``oversubscribed`` is of this rank's host.

    ``seconds_X`` are maxima over ranks; ``seconds_X_min`` and ``seconds_X_mean`` stand beside.
    """
    config, comm = training.config, training.comm
    traffic = comm.traffic  # read before the messages below add to it
    sent = {
        "vector_allreduces": traffic.vector_allreduces,
        "scalar_allreduces": traffic.scalar_allreduces,
        "bytes_allreduced": traffic.bytes_allreduced,
    }
    clock = comm.clock
    clock.lap()  # books what is open
    spent = dict(clock.seconds)
    del spent["other"]  # what is in no phase, start-up before the clock included
    seconds = {
        "total": seconds_total,
        "compute": spent["gradient"] + spent["algebra"],
        "communication": sum(spent[phase] for phase in COMMUNICATION),
        **spent,
        "other": max(seconds_total - sum(spent.values()), 0.0),
    }
    return {
        "optimizer": config.optimizer,
        "local_solver": None if config.optimizer in BASELINES else config.local_solver,
        "network": config.network,
        "parameters": training.network.n,
        "dataset": training.info.name,
        "ranks": comm.size,
        "subdomains_per_rank": config.subdomains_per_rank,
        "threads_per_rank": training.threads,
        "oversubscribed": training.oversubscribed,
        "device": training.device.type,
        "seed": config.seed,
        **results,
        **sent,
        **_over_ranks(seconds, comm),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _over_ranks(seconds: dict[str, float], comm: Comm) -> dict[str, float]:
    own = list(seconds.values())
    extremes = np.array(own + [-value for value in own])
    comm.maximum(extremes)
    sums = [total for i in range(0, len(own), 8) for total in comm.sum_scalars(own[i : i + 8])]
    result = {}
    for i, name in enumerate(seconds):
        result[f"seconds_{name}"] = float(extremes[i])
        result[f"seconds_{name}_min"] = float(-extremes[len(own) + i])
        result[f"seconds_{name}_mean"] = sums[i] / comm.size
    return result


def table(summary: dict[str, Any], path: Path) -> str:
    """The closing table for people."""
    s = summary
    iterations = str(s["outer_iterations"])
    if s["optimizer"] not in BASELINES:
        iterations += f"  ({s['accepted']} corrections accepted, {s['rejected']} rejected)"
    losses = {"train": "train"} | {key: name for key, name in JUDGED.items() if f"{key}_loss" in s}
    rows = judged(s)
    rows += [
        ("loss", ", ".join(f"{losses[key]} {shown_loss(s, f'{key}_loss')}" for key in losses)),
        ("outer iterations", iterations),
        ("work", f"{s['epochs']:.1f} epochs ({s['gradient_evaluations']:.0f} sample gradients)"),
    ]
    total = s["seconds_total_mean"]
    between = ("evaluation", "checkpoint", "other")
    for name in ("gradient", "algebra", "communication", "wait", "data", *between):
        mean, most = s[f"seconds_{name}_mean"], s[f"seconds_{name}"]
        share = 100 * mean / total if total else 0.0
        rows.append((name, f"{mean:.2f} s  {share:4.1f} %  (slowest rank {most:.2f} s)"))
    rows += [
        ("total", f"{s['seconds_total']:.2f} s"),
        (
            "messages",
            f"{s['vector_allreduces']} of {s['parameters']:,} parameters, "
            f"{s['scalar_allreduces']} of scalars, {s['bytes_allreduced'] / 1e6:.1f} MB a rank",
        ),
        ("written to", str(path)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
