"""``python -m tests.faults.accuracy --parts N --after K FLAGS``: accuracy after a rank's death.

Of every seed three runs: of N parts of the data, of N - 1, and of N that are N - 1 after K
iterations, which is resumed from its checkpoint: a run whose rank dies goes the same way, bit for
bit (tests/training/test_recovery.py). The parts are subdomains of one process, as no figure depends
on which rank has them. ``FLAGS`` are those of the program.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from apts_mpi.cli import main as cli
from apts_mpi.comm.communicator import Comm

WAYS = ("all", "one fewer", "one dies")


def accuracy(out: Path, parts: int, *words: str | Path) -> float:
    """In percent on the test samples, of a run to its end."""
    flags = [*words, "--subdomains-per-rank", parts, "--threads", 1, "--device", "cpu"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        cli.main([*map(str, flags), "--out", str(out)], Comm())
    return 100.0 * float(json.loads((out / "summary.json").read_text())["test_accuracy"])


def main() -> int:
    """The command: a line for every seed, then a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.accuracy", description=__doc__)
    parser.add_argument("--parts", type=int, default=4, metavar="N")
    parser.add_argument("--after", type=int, required=True, metavar="K")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    given, flags = parser.parse_known_args()
    parts, rows = given.parts, []
    for seed in range(given.seeds):
        words = (*flags, "--seed", str(seed))
        with tempfile.TemporaryDirectory(prefix="accuracy-") as name:
            folder = Path(name)
            begun = ("--iterations", str(given.after), "--checkpoint-every", "1000000")
            accuracy(folder / "begun", parts, *words, *begun)
            again = ("--resume", folder / "begun", "--iterations", "1000000")
            row = [accuracy(folder / str(k), parts - k, *words) for k in range(2)]
            row.append(accuracy(folder / "left", parts - 1, *again))
        rows.append(row)
        print(f"seed {seed}: {', '.join(f'{each:.2f}' for each in row)}", flush=True)
    found = np.array(rows)
    last = ("difference of the last", found[:, 2] - found[:, 1])
    print("| | mean | standard error |\n| --- | ---: | ---: |")
    for way, values in [*zip(WAYS, found.T, strict=True), last]:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        print(f"| {way} | {np.mean(values):.2f} | {error:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
