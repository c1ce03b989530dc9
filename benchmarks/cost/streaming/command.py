"""Whether a stream from the disk keeps a training loop fed: time, waiting, and memory.

A loop of minibatch gradients over a generated file of images, on one process: with the part read
into memory, and with the stream, from the disk and from the system's cache. Writes streaming.md and
streaming.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import apts_mpi
from apts_mpi.data import Source, write_shards
from apts_mpi.errors import InputError
from benchmarks.harness import tables
from benchmarks.harness.jobs import ROOT, RunFailed
from benchmarks.harness.progress import measure_missing
from benchmarks.harness.results import Results, Row

SHAPE = (3, 32, 32)  # of an image, a byte a value
NETWORKS = {"none": "drawing alone", "mlp": "MLP 128, 128", "cnn": "CNN 16, 32"}
WAYS = {
    "memory": "in memory",
    "cold": "stream, from the disk",
    "warm": "stream, from the system's cache",
}
SHARDS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--megabytes", type=int, default=2000, metavar="N", help="of the file (default 2000)"
    )
    parser.add_argument(
        "--minibatches", type=int, default=3000, metavar="N", help="of a loop (default 3000)"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="(default 64)")
    parser.add_argument(
        "--folder", metavar="DIR", help="for the file, to measure its disk (default: /tmp's)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    if min(parsed.megabytes, parsed.minibatches, parsed.batch) < 1:
        raise InputError("--megabytes, --minibatches and --batch must be positive")
    out = Path(parsed.out)
    results = Results(out / "streaming.jsonl", fresh=parsed.fresh)
    sizes = {name: getattr(parsed, name) for name in ("megabytes", "minibatches", "batch")}
    common = {"apts_mpi": apts_mpi.__version__, **sizes}
    cases = [
        ({**common, "network": network, "way": way}, f"{network}, {way}")
        for network in NETWORKS
        for way in WAYS
    ]
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:

        def measure(settings: Row) -> tuple[Row, str]:
            row = _measured(Path(name), settings)
            return row, f"{1e3 * row['median']:.2f} ms, waited {row['waited']:.2f} s"

        failures = measure_missing(cases, results, measure)
    _report(out, results.rows())
    return 1 if failures else 0


def _measured(folder: Path, settings: Row) -> Row:
    shards = folder / "shards"
    if not shards.exists():
        _write(shards, settings["megabytes"])
    words = [settings[name] for name in ("way", "network", "batch", "minibatches")]
    command = [sys.executable, "-m", "benchmarks.cost.streaming.worker", shards, *words]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    if done.returncode:
        raise RunFailed((done.stderr.strip().splitlines() or ["no word"])[-1])
    found: Row = json.loads(done.stdout)
    return found


def _write(directory: Path, megabytes: int) -> None:
    """Random images in so many megabytes, which no file system can pack."""
    samples = max(megabytes * 10**6 // int(np.prod(SHAPE)), 16)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(samples, *SHAPE), dtype=np.uint8)
    y = rng.integers(0, 10, size=samples)
    classes = tuple("0123456789")
    write_shards(Source("random", x, y, x[:10], y[:10], classes), directory, shards=SHARDS)


def _report(out: Path, rows: list[Row]) -> None:
    """Write streaming.md."""
    if not rows:
        return
    header = ["loop", "data", "file, MB", "ms a minibatch", "quartiles", "ms on average"]
    header += ["loop's CPU, ms", "reader's CPU, ms"]
    header += ["waited, s", "of, s", "first, s", "memory, MB", "stated, MB", "start, s"]
    order = {name: k for k, name in enumerate([*NETWORKS, *WAYS])}
    rows = sorted(
        rows,
        key=lambda row: [order[row["settings"][name]] for name in ("network", "way")],
    )
    tables.write(
        out / "streaming.md",
        "# Is the loop fed?",
        "Gradients of minibatches of uint8 images (3, 32, 32) on one process, torch with one "
        "thread, the reading thread beside it. Median time of a minibatch, drawn and computed; its "
        "mean, and that of the processor's time for the loop and for the reading thread; the "
        "seconds of the loop that it waited for data, the first minibatch aside, for which the "
        "first group is read; the most memory that the process took, with what the loop computes, "
        "beyond what it had before it opened the data, and the bound that the stream states for "
        "itself. Start: reading the part, or opening the shards.",
        tables.markdown(header, map(_line, rows), text=2),
        tables.setup(rows) + " Repeat: `python -m benchmarks streaming --fresh`.",
    )


def _line(row: Row) -> list[Any]:
    settings, stated = row["settings"], row["stated"]
    return [
        *(NETWORKS[settings["network"]], WAYS[settings["way"]], f"{settings['megabytes']:,}"),
        f"{1e3 * row['median']:.2f}",
        " to ".join(f"{1e3 * row[name]:.2f}" for name in ("low", "high")),
        *(
            f"{1e3 * row[n] / settings['minibatches']:.2f}"
            for n in ("seconds", "cpu", "cpu_reader")
        ),
        *(f"{row[name]:.{digits}f}" for name, digits in (("waited", 2), ("seconds", 1))),
        *(f"{row['first']:.2f}", f"{row['memory'] / 1e6:,.0f}"),
        *("-" if stated is None else f"{stated / 1e6:.0f}", f"{row['start']:.2f}"),
    ]
