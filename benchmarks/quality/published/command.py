"""Against the authors' curves: MNIST, 6 minibatches a pass, 5 percent overlap, N = 2, 4, 6.

The set-up of arXiv 2502.05133 on real MPI ranks, first order and L-SR1, 10 of their epochs = 10
passes = 60 outer iterations. Needs the four MNIST files. Writes published.md, published.jsonl and
published.png; runs that are in published.jsonl are not run again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import apts_mpi
from apts_mpi.data import read_info
from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.data import find_mnist, shard_mnist
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.options import whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, outcome
from benchmarks.quality.published.authors import (
    EXTRACT,
    MINIBATCHES,
    ORDERS,
    OVERLAP,
    read_reference,
)
from benchmarks.quality.published.report import HIDDEN, plot, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--mnist",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of the four IDX files, gzipped or not (default $APTS_MPI_TEST_DATA/mnist, or "
        "shared/data/mnist beside the checkout)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        default=EXTRACT,
        metavar="FILE",
        help="CSV of the published curves (default: the extract that comes with the benchmarks)",
    )
    parser.add_argument(
        "--ranks", type=whole_numbers, default=(2, 4, 6), help="numbers of ranks (default 2,4,6)"
    )
    parser.add_argument(
        "--seeds",
        type=whole_numbers,
        default=(0, 1, 2),
        help="of the initial parameters and minibatches (default 0,1,2)",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=60,
        metavar="N",
        help=f"outer iterations, {MINIBATCHES} a pass (default 60)",
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="seconds a run (default 1800)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are done")


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing, write all."""
    if parsed.iterations < MINIBATCHES or min(parsed.ranks) < 1 or not 0 < parsed.timeout < 1e6:
        raise InputError(
            f"--iterations must be at least {MINIBATCHES}, a pass; --ranks and --timeout positive"
        )
    figures.pyplot()
    reference = read_reference(parsed.reference)
    out = Path(parsed.out)
    results = Results(out / "published.jsonl", fresh=parsed.fresh)
    wanted = [
        _settings(ranks, solver, seed, parsed.iterations)
        for ranks in parsed.ranks
        for solver in ORDERS
        for seed in parsed.seeds
    ]
    missing = [settings for settings in wanted if results.get(settings) is None]
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them done before", flush=True)
    failures = 0
    if missing:
        mnist, progress = find_mnist(parsed.mnist), Progress(len(missing))
        with tempfile.TemporaryDirectory() as folder:
            for settings in missing:
                text = "N = {ranks}, {local_solver}, seed {seed}".format(**settings)
                try:
                    row = results.add(
                        settings, _measure(settings, mnist, Path(folder), parsed.timeout)
                    )
                    progress.say(f"{text}: {100 * row['test_accuracy']:.1f} %")
                except RunFailed as error:
                    failures += 1
                    progress.say(f"{text}: failed: {error}")
    rows = [row for row in map(results.get, wanted) if row is not None]
    if rows:
        plot(out / "published.png", rows, reference)
        write(out / "published.md", rows, reference)
    return 1 if failures else 0


def _settings(ranks: int, solver: str, seed: int, iterations: int) -> Row:
    return {
        "apts_mpi": apts_mpi.__version__,
        "ranks": ranks,
        "local_solver": solver,
        "seed": seed,
        "iterations": iterations,
        "minibatches": MINIBATCHES,
        "overlap": OVERLAP,
    }


def _command(settings: Row, samples: int) -> list[str]:
    """The program's arguments for a run on so many training samples, but for --data and --out."""
    batch = math.ceil(samples / settings["ranks"] / MINIBATCHES)
    return [
        *("train", "--network", "mlp", "--hidden", HIDDEN, "--device", "cpu"),
        *("--batch", str(batch), "--overlap", str(OVERLAP), "--local-steps", "5"),
        *("--local-solver", settings["local_solver"], "--global-step", "on"),
        *("--iterations", str(settings["iterations"]), "--epochs", "1000000"),
        *("--evaluate-every", "0", "--seed", str(settings["seed"])),
    ]


def _measure(settings: Row, mnist: Path, folder: Path, timeout: float) -> Row:
    """Shard where that is not done yet, train, and give what came out."""
    data = folder / f"mnist-{settings['ranks']}"
    if not data.exists():
        shard_mnist(mnist.resolve(), data, settings["ranks"])
    run = folder / "-".join(str(settings[key]) for key in ("ranks", "local_solver", "seed"))
    command = _command(settings, read_info(data).splits["train"].total)
    whole = ["-m", "apts_mpi", *command, "--data", str(data), "--out", str(run)]
    mpirun(settings["ranks"], whole, timeout=timeout)
    return {"command": " ".join(command), **outcome(run)}
