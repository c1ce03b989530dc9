"""``mpirun -n N python -m tests.faults.accuracy --after K FLAGS``: accuracy after a rank's death.

Of every seed three runs: on N ranks, on N - 1, and on N of which one is gone after K iterations.
That one is resumed from its checkpoint on N - 1 ranks: a run whose rank dies goes the same way, bit
for bit (tests/training/test_recovery.py). ``FLAGS`` are those of the program.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apts_mpi.cli import main as cli
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.job import MPI

WAYS = ("all ranks", "one fewer", "one dies")


def accuracy(words: Sequence[str | Path], ranks: MPI.Comm, out: Path) -> float:
    """On the test samples, of a run to its end."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        cli.main([*map(str, words), "--out", str(out)], Comm(ranks))
    return float(json.loads((out / "summary.json").read_text())["test_accuracy"])


def main() -> int:
    """The command: a line for every seed, then a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.accuracy", description=__doc__)
    parser.add_argument("--after", type=int, required=True, metavar="K")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    given, flags = parser.parse_known_args()
    everyone, fixed = MPI.COMM_WORLD, ("--threads", "1", "--device", "cpu")
    stays = everyone.rank < everyone.size - 1
    fewer = everyone.Split(0 if stays else MPI.UNDEFINED, everyone.rank)
    folder = Path(Comm().broadcast_text(tempfile.mkdtemp(prefix="accuracy-")))
    rows = []
    for seed in range(given.seeds):
        words, own = (*flags, *fixed, "--seed", str(seed)), folder / str(seed)
        row = [accuracy(words, everyone, own / "all")]
        begun = ("--iterations", str(given.after), "--checkpoint-every", "1000000")
        accuracy((*words, *begun), everyone, own / "begun")
        if stays:
            row.append(accuracy(words, fewer, own / "fewer"))
            again = ("--resume", own / "begun", "--iterations", "1000000", *fixed)
            row.append(accuracy(again, fewer, own / "left"))
        everyone.Barrier()
        rows.append(row)
        if everyone.rank == 0:
            print(f"seed {seed}: {dict(zip(WAYS, row, strict=True))}", flush=True)
    if everyone.rank == 0:
        found = 100 * np.array(rows)
        print("| | mean | standard error |\n| --- | ---: | ---: |")
        last = found[:, 2] - found[:, 1]
        for way, values in [*zip(WAYS, found.T, strict=True), ("difference of the last", last)]:
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            print(f"| {way} | {np.mean(values):.2f} | {error:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
