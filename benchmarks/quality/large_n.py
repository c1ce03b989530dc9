"""N = 16, 32 and 64 subdomains as real MPI ranks, and the same ones on a single rank.

A small network on MNIST, a few outer iterations. The two must train alike: what is told is how far
apart their losses are, and what the ranks cost on this machine, where they share its cores: start,
seconds an iteration, and the part of them that goes into waiting and messages. The quality as N
grows is in the set "many" of beyond.toml. Writes large_n.md and large_n.jsonl; runs that are there
are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import apts_mpi
from apts_mpi.data import load_source, write_shards
from apts_mpi.errors import InputError
from benchmarks.harness import tables
from benchmarks.harness.data import find_mnist
from benchmarks.harness.jobs import mpirun
from benchmarks.harness.options import whole_numbers
from benchmarks.harness.progress import measure_missing
from benchmarks.harness.results import Results, Row

HIDDEN, ITERATIONS = "32", 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--ranks", type=whole_numbers, default=(16, 32, 64), help="(default 16,32,64)"
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files (as compare's)",
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, metavar="S", help="seconds a run (default 900)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing, write all that is there."""
    if min(parsed.ranks) < 2:
        raise InputError("--ranks must be 2 or more")
    out = Path(parsed.out)
    results = Results(out / "large_n.jsonl", fresh=parsed.fresh)
    cases = [
        (
            {"apts_mpi": apts_mpi.__version__, "subdomains": n, "ranks": ranks},
            f"{n} subdomains on {ranks} ranks",
        )
        for n in parsed.ranks
        for ranks in (1, n)
    ]
    with tempfile.TemporaryDirectory() as name:

        def measure(settings: Row) -> tuple[Row, str]:
            row = _measured(Path(name), settings["subdomains"], settings["ranks"], parsed)
            return row, f"{row['seconds']:.0f} s"

        failures = measure_missing(cases, results, measure)
    _report(out, results.rows())
    return 1 if failures else 0


def _measured(folder: Path, n: int, ranks: int, parsed: argparse.Namespace) -> Row:
    shards, out = folder / f"mnist-{n}", folder / f"run-{n}-{ranks}"
    if not shards.exists():
        write_shards(load_source("mnist", path=find_mnist(parsed.mnist)), shards, shards=n)
    flags = ["train", "--data", str(shards), "--hidden", HIDDEN, "--threads", "1"]
    flags += ["--iterations", str(ITERATIONS), "--evaluate-every", "1e9", "--device", "cpu"]
    flags += ["--checkpoint-every", "off", "--out", str(out)]
    flags += ["--subdomains-per-rank", str(n // ranks)]
    start = time.perf_counter()
    mpirun(ranks, ["-m", "apts_mpi", *flags], timeout=parsed.timeout)
    seconds = time.perf_counter() - start
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = ["parameters", "test_loss", "test_accuracy", "vector_allreduces", "versions"]
    names += ["bytes_allreduced", "threads_per_rank"]
    return {
        "seconds": seconds,
        "losses": [row["loss"] for row in rows],
        "radii": [row["radius"] for row in rows],
        "iteration_seconds": [row["seconds"] for row in rows],
        "message_seconds": [row["seconds_communication"] + row["seconds_wait"] for row in rows],
        "cores": os.cpu_count(),
        **{name: summary[name] for name in names},
    }


def _report(out: Path, rows: list[Row]) -> None:
    """Write large_n.md."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: (row["settings"]["subdomains"], row["settings"]["ranks"]))
    alone = {row["settings"]["subdomains"]: row for row in rows if row["settings"]["ranks"] == 1}
    header = ["subdomains", "ranks", "test accuracy, %", "losses apart, relative", "whole run, s"]
    header += ["iteration, s", "of it waiting and messages, %"]
    tables.write(
        out / "large_n.md",
        "# Many subdomains: as many ranks, and one",
        f"MNIST, one hidden layer of {HIDDEN}, {ITERATIONS} outer iterations, default settings. "
        "Losses apart: the largest relative difference between the losses of the iterations and "
        "those of the same subdomains on one rank; they differ by the order of summation alone. "
        f"The ranks share {rows[0]['cores']} cores: times tell what that costs, not how it scales.",
        tables.markdown(header, [_line(row, alone) for row in rows], text=0),
        tables.setup(rows) + " Repeat: `python -m benchmarks large_n --fresh`.",
    )


def _line(row: Row, alone: dict[int, Row]) -> list[Any]:
    n, ranks = row["settings"]["subdomains"], row["settings"]["ranks"]
    apart = "-"
    if ranks > 1 and n in alone:
        pairs = zip(row["losses"], alone[n]["losses"], strict=True)
        apart = f"{max(abs(a - b) / abs(b) for a, b in pairs):.1e}"
    each = sum(row["iteration_seconds"]) / len(row["iteration_seconds"])
    share = sum(row["message_seconds"]) / max(sum(row["iteration_seconds"]), 1e-9)
    return [
        *(n, ranks, f"{100 * row['test_accuracy']:.2f}", apart, f"{row['seconds']:.0f}"),
        *(f"{each:.2f}", f"{100 * share:.0f}"),
    ]
