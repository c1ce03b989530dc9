"""``python -m tests.faults.recovery_time``: seconds from a death to the next finished iteration.

The survivors of an elastic run, against a job that ends and is started again from its last
checkpoint at once, by somebody who only waits for its end. In turns. Also what the copy for the
survivors takes of an iteration.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.jobs import finished

RANKS, DEATH = 3, 5  # the iteration that is the last of one rank
LIMIT = 300.0
NETWORKS = ("8", "128,128")
FLAGS = (
    *("--threads", "1", "--device", "cpu", "--batch", "60", "--local-steps", "6", "--epochs"),
    *("1e6", "--iterations", str(DEATH + 3), "--evaluate-every", "1000"),
)


def job(folder: Path, name: str, ranks: int, words: Sequence[str], **more: str) -> Path:
    """Run one to its end; the folder of what its ranks have recorded."""
    records = folder / name
    records.mkdir()
    command = ["mpirun", "--with-ft", "ulfm"] if "--elastic" in words else ["mpirun"]
    command += ["-n", str(ranks), sys.executable, "-m", "tests.faults.elastic_victim", *FLAGS]
    finished([*command, *words], folder / f"{name}.log", LIMIT, RECORDS=str(records), **more)
    return records


def lines(records: Path) -> list[dict[str, Any]]:
    """What ranks have said of their iterations."""
    files = records.glob("drawn-*")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def measure(folder: Path, hidden: str, turn: int) -> dict[str, float]:
    """Both ways, once."""
    name, words = f"{hidden}-{turn}", ["--hidden", hidden]
    fault = {"action": "kill", "place": "after an iteration", "rank": 1, "number": DEATH}
    planted = json.dumps([fault])
    out = ["--out", str(folder / f"run-{name}")]
    elastic = job(folder, f"elastic-{name}", RANKS, [*words, *out, "--elastic"], PLANTED=planted)
    struck, found = float((elastic / "struck").read_text()), lines(elastic)
    survived = min(line["time"] for line in found if line["losses"]) - struck
    kept = [line["kept"] / line["seconds"] for line in found if not line["losses"]]
    out = ["--out", str(folder / f"old-{name}"), "--checkpoint-every", "1"]
    first = job(folder, f"first-{name}", RANKS, [*words, *out], PLANTED=planted)
    struck = float((first / "struck").read_text())
    out = ["--resume", str(folder / f"old-{name}")]
    again = job(folder, f"again-{name}", RANKS - 1, [*words, *out])
    restarted = min(line["time"] for line in lines(again)) - struck
    return {"survived": survived, "restarted": restarted, "kept": float(np.median(kept))}


def main() -> int:
    """The command: a line per network, in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.recovery_time")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines, added to")
    parser.add_argument("--hidden", nargs="+", default=NETWORKS, metavar="N,N")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    print("| hidden layers | survivors go on, median s | most | restart, median s | most |")
    for hidden in given.hidden:
        rows = []
        for turn in range(given.repetitions):
            rows.append(measure(folder, hidden, turn))
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"hidden": hidden, **rows[-1]}) + "\n")
        ways = [[row[way] for row in rows] for way in ("survived", "restarted")]
        cells = [f"{float(np.median(way)):.2f} | {max(way):.2f}" for way in ways]
        share = 100 * float(np.median([row["kept"] for row in rows]))
        print(f"| {hidden} | {' | '.join(cells)} | (the copy: {share:.2f} % of an iteration)")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
