"""``python -m tests.faults.inject``: faults at random places of runs, and what becomes of these.

Each run must end by itself in time with a line that says why, or go on correctly. Whatever has
happened, every checkpoint it leaves must be whole, no process may be left, and the run must go on
from there to the same metrics, bit for bit, as one that nothing has happened to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tests.faults.elastic_runs import Elastic, ElasticFaults
from tests.faults.elastic_runs import table as elastic_table
from tests.faults.faulty_runs import ACTIONS, OUTCOMES, Faults, Outcome
from tests.ranks import quick_python


def table(results: Sequence[Outcome]) -> str:
    """Injections by action, how they ended and how long the runs took, in Markdown."""
    rows = [["fault", "injections", *OUTCOMES, "seconds, median", "most"]]
    for action in [*ACTIONS, "all"]:
        own = [each for each in results if action in (each.action, "all")]
        if own:
            counts = Counter(each.outcome for each in own)
            seconds = sorted(each.seconds for each in own)
            middle, most = float(np.median(seconds)), seconds[-1]
            cells = [str(counts[outcome]) for outcome in OUTCOMES]
            rows.append([action, str(len(own)), *cells, f"{middle:.1f}", f"{most:.1f}"])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.inject", description=__doc__)
    parser.add_argument("--injections", type=int, default=200, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines, gone on with")
    parser.add_argument("--elastic", action="store_true", help="ranks die, and the others go on")
    given = parser.parse_args(arguments)
    kind: type[Elastic] | type[Outcome] = Elastic if given.elastic else Outcome
    results = list[Any]()
    if given.out and given.out.exists():
        lines = given.out.read_text(encoding="utf-8").splitlines()
        results = [kind(**json.loads(line)) for line in lines]
    done, folder = {each.number for each in results}, Path(tempfile.mkdtemp(prefix="faults-"))
    wanted = range(given.first, given.first + given.injections)
    numbers = [number for number in wanted if number not in done]
    with quick_python() as python, tqdm(total=len(numbers), unit="injection") as bar:
        faults = (ElasticFaults if given.elastic else Faults)(folder, given.seed, python)
        many = 1 if given.elastic else 8
        for start in range(0, len(numbers), many):
            some = faults.run(numbers[start : start + many])
            results += some
            bar.update(len(some))
            for each in some:
                if each.outcome == "wrong":
                    tqdm.write(f"{each.number}: {each}")
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(asdict(each)) + "\n" for each in some)
    print(elastic_table(results) if given.elastic else table(results))
    wrong = any(each.outcome == "wrong" for each in results)
    if wrong:
        print(f"what was wrong is in {folder}")
    else:
        shutil.rmtree(folder)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
