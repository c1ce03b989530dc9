"""Guarded communicators, with stand-ins for those of MPI."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from apts_mpi.comm import elastic
from apts_mpi.comm.elastic import Guarded
from apts_mpi.comm.elastic_watch import Process
from apts_mpi.comm.job import MPI
from apts_mpi.comm.status_board import born
from apts_mpi.errors import AgreedError, RanksLost, is_exhausted


class Imitated:
    """A communicator that fails as it is told."""

    def __init__(self, size: int = 3) -> None:
        self.size, self.revoked, self.acknowledged, self.dead = size, 0, 0, 0
        self.answers: list[Any] = []

    def Set_errhandler(self, handler: object) -> None:
        pass

    def Is_revoked(self) -> bool:
        return self.revoked > 0

    def Revoke(self) -> None:
        self.revoked += 1

    def Get_size(self) -> int:
        return self.size

    def Ack_failed(self) -> int:
        self.acknowledged += 1
        return self.dead

    def _answer(self, *arguments: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def Agree(self, flag: int) -> int:
        return flag & int(self._answer())

    Allreduce = Shrink = _answer


def test_a_start_of_mpi_that_takes_too_long_ends_with_a_line() -> None:
    program = "import time\nfrom apts_mpi.comm.elastic import bounded\nwith bounded({}): {}"
    ways = (program.format(0.1, "time.sleep(60)"), program.format(60, "pass"))
    late, done = (
        subprocess.run([sys.executable, "-c", way], capture_output=True, text=True, timeout=50)
        for way in ways
    )
    assert (late.returncode, done.returncode, done.stderr) == (1, 0, "")
    assert "MPI has not started on all ranks after 0.1 s (--stall-abort)" in late.stderr


def failure() -> Exception:
    return MPI.Exception(MPI.ERR_OTHER)


def test_a_call_that_fails_revokes_the_family_and_raises_ranks_lost() -> None:
    world, node = Imitated(), Imitated()
    guarded = Guarded(world)  # type: ignore[arg-type]
    derived = Guarded(node, guarded._family)  # type: ignore[arg-type]
    node.answers = [7, failure()]
    assert derived.Allreduce(1) == 7
    with pytest.raises(RanksLost, match="Allreduce"):
        derived.Allreduce(1)
    assert (world.revoked, node.revoked) == (1, 1)


def test_agreement_is_asked_for_again_where_another_rank_dies() -> None:
    world = Imitated()
    guarded = Guarded(world)  # type: ignore[arg-type]
    world.answers = [failure(), 3, 2, 1]
    assert guarded.agreed(True) == (True, True)
    assert world.acknowledged == 2
    assert guarded.agreed(True) == (False, True)
    assert guarded.agreed(True) == (True, False)


def test_a_rank_that_dies_after_the_last_message_is_a_loss() -> None:
    world = Imitated()
    guarded = Guarded(world)  # type: ignore[arg-type]
    world.answers, world.dead = [3], 1
    assert guarded.agreed(True) == (False, True)


def test_a_failed_call_without_a_death_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "_PAUSE", 0.0)
    world = Imitated()
    guarded = Guarded(world)  # type: ignore[arg-type]
    world.answers = [Imitated(3) for _ in range(elastic._TRIES)]
    with pytest.raises(AgreedError, match="no rank has died"):
        guarded.shrink()
    world.answers = [failure(), Imitated(2)]
    assert guarded.shrink().Get_size() == 2


def test_only_the_very_process_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        fact = f"here {child.pid} {born(child.pid)}"
        Process.of(f"here {child.pid} 5").end()  # another one that had its number
        assert child.poll() is None
        Process.of(fact).end()
        assert child.wait(10) == -9
        Process.of(fact).end()  # which is gone
    finally:
        child.kill()
        child.communicate()


def test_own_start_is_known() -> None:
    assert born(os.getpid()).isdecimal() == sys.platform.startswith("linux")


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried"), True),
        (RuntimeError("a dog"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_has_run_out(error: Exception, exhausted: bool) -> None:
    assert is_exhausted(error) == exhausted
