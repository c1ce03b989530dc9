"""``mpirun --with-ft ulfm -n N python -m tests.faults.elastic_victim FLAGS``: ranks that die.

The environment's ``PLANTED`` is a JSON list of ``victim.Fault``, each of a rank of the launcher's.
Where ``RECORDS`` names a folder, every rank leaves there which samples it has drawn in each
iteration it has completed, and, at the end, a checksum of the parameters. Without ``PLANTED`` every
rank writes how often it has come to each place, to ``counts-RANK`` there.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from apts_mpi import __main__ as program
from apts_mpi.comm import elastic
from apts_mpi.comm.job import MPI
from apts_mpi.training import iterating, loop, recovery, subdomain
from tests.faults import victim

PLACES: dict[str, tuple[Any, str]] = {
    **{place: where for place, where in victim.PLACES.items() if place != "pruning"},
    "split": (elastic.Guarded, "revoke"),
    "agreement": (elastic.Guarded, "agreed"),
    "shrinking": (elastic.Guarded, "shrink"),
    "handing over": (recovery.Kept, "reconciled"),
    "summary": (loop, "summarise"),
}
IN_RECOVERY = ("split", "agreement", "shrinking", "handing over")


def record(folder: Path, rank: int) -> None:
    """Write down what is drawn, and the end."""
    drawn: list[tuple[int, int, list[int]]] = []
    draw = subdomain.Subdomain.draw
    counted, finished = loop.Training._count, loop.Training._finish
    file = (folder / f"drawn-{rank}").open("a", encoding="utf-8")

    def drawing(self: Any) -> Any:
        rest, place = self.batches._rest, self.batches.drawn
        if rest is None:
            rest = self.batches.one_pass(place[0])
        drawn.append((place[0], self.batches._rank, list(map(int, rest[place[2]]))))
        return draw(self)

    def counting(self: Any, *arguments: Any) -> Any:
        row = counted(self, *arguments)
        line = {"iteration": row["iteration"], "parts": self.built.parts, "drawn": drawn}
        line |= {"kept": kept[-1], "seconds": row["seconds"]}
        file.write(
            json.dumps({**line, "losses": len(self._losses), "time": time.monotonic()}) + "\n"
        )
        file.flush()
        drawn.clear()
        return row

    def finishing(self: Any) -> Any:
        summary = finished(self)
        bits = zlib.crc32(self.built.network.vector.numpy().tobytes())
        (folder / f"end-{rank}").write_text(str(bits))
        return summary

    def remembering(self: Any) -> None:
        start = time.perf_counter()
        remembered(self)
        kept.append(time.perf_counter() - start)

    def beginning(self: Any, *arguments: Any) -> Any:
        drawn.clear()
        return iterated(self, *arguments)

    kept, remembered = [0.0], loop.Training._remember
    loop.Training._remember = remembering  # type: ignore[method-assign]
    iterated = iterating.Iterating.iterate
    subdomain.Subdomain.draw = drawing  # type: ignore[method-assign]
    loop.Training._count = counting  # type: ignore[method-assign, assignment]
    loop.Training._finish = finishing  # type: ignore[method-assign]
    iterating.Iterating.iterate = beginning  # type: ignore[method-assign, assignment]


def plant(place: str, number: int, action: Callable[[], object]) -> None:
    """Have it happen as a place is come to for so many times."""
    owner, name = PLACES[place]
    function, seen = getattr(owner, name), 0

    @functools.wraps(function)
    def instead(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            action()
        return function(*arguments, **named)

    setattr(owner, name, instead)


def strike(folder: Path | None, action: str) -> None:
    """Say when, in that folder, and do it."""
    if folder is not None:
        (folder / "struck").write_text(str(time.monotonic()))
    victim.ACTIONS[action]()


def main() -> int:
    """The program's own, on this rank."""
    rank, named = MPI.COMM_WORLD.Get_rank(), os.environ.get("RECORDS")
    folder = Path(named) if named else None
    if folder is not None:
        record(folder, rank)
    planted = os.environ.get("PLANTED")
    if planted:
        for fault in json.loads(planted):
            if fault["rank"] == rank:
                plant(fault["place"], fault["number"], partial(strike, folder, fault["action"]))
        return program.main()
    counts = victim.count(PLACES)
    status = program.main()
    ((folder or Path()) / f"counts-{rank}").write_text(
        json.dumps({place: counts[place] for place in PLACES})
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
