"""A job whose ranks are imitated in one process, and see time pass only in ``live``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from apts_mpi.comm.watch import Watch


class Rank(Watch):
    """A rank of the job; its clock is the job's."""

    def __init__(self, job: Job, rank: int, warning: float, abort: float) -> None:
        self.job, self.number = job, rank
        facts = [f"h{each} {100 + each} {job.born}" for each in range(job.size)]
        ranks = SimpleNamespace(
            rank=rank, size=job.size, host=f"h{rank}", gather_texts=lambda text: facts
        )
        super().__init__(ranks, warning, abort)
        self.directory = job.directory

    def _end_process(self, seconds: float) -> None:
        self.job.ended.append(self.number)

    def _end_job(self) -> None:
        self.job.aborted.append(self.number)


class Job:
    """Ranks by number; ``ended`` and ``aborted`` are those that ended themselves or all."""

    def __init__(self, clock: SimpleNamespace, directory: Path | None, size: int) -> None:
        self.clock, self.directory, self.size, self.born = clock, directory, size, clock.now
        self.ended: list[int] = []
        self.aborted: list[int] = []
        self.ranks: list[Rank] = []

    def enter(self, call: str, *ranks: int) -> None:
        for rank in ranks:
            self.ranks[rank].enter(call)

    def leave(self, *ranks: int) -> None:
        """They have what they waited for, and a second passes."""
        for rank in ranks:
            self.ranks[rank].leave()
        self.live(1)

    def live(self, seconds: float, *, step: float = 1.0, without: tuple[int, ...] = ()) -> None:
        """So many seconds for all ranks but some, and those whose end has come."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            for rank in self.ranks:
                if rank.number not in (*without, *self.ended):
                    rank.advance(step)
