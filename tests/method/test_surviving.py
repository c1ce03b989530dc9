"""A user's own loop outlives its ranks: real jobs, some of whose ranks kill themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from apts_mpi import StochasticAPTS
from apts_mpi.comm.survivors import Loss
from tests.conftest import MPIRUN, Finished
from tests.method.looping import X, made, minibatches, network, theta, trained

ULFM = ("--with-ft", "ulfm")


@pytest.fixture(scope="module")
def with_ulfm() -> None:
    """Only where ranks can outlive others."""
    if MPIRUN is None or sys.platform != "linux":
        pytest.skip("ranks are killed in jobs of mpirun on Linux")
    told = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, timeout=60).stdout
    version = re.search(r"Open MPI\D* (\d+)", told)
    if version is None or int(version[1]) < 5:
        pytest.skip("needs the mpirun of Open MPI 5, which has ULFM")


@pytest.mark.usefixtures("with_ulfm")
def test_survivors_go_the_very_way_of_a_loop_resumed_on_as_many_ranks(
    program: Callable[..., Finished],
) -> None:
    done = program(3, "surviving.goes_on", mpirun=ULFM)
    assert done.status == 0, done.out + done.err
    line = "rank 1 is gone (in iteration 5): 2 of 3 ranks are left and go on after iteration 4"
    assert line in done.err
    done = program(2, "surviving.resumed")
    assert done.status == 0, done.out + done.err


@pytest.mark.usefixtures("with_ulfm")
def test_a_loop_goes_on_until_one_rank_is_left(program: Callable[..., Finished]) -> None:
    done = program(3, "surviving.another_dies_meanwhile", mpirun=ULFM)
    assert done.status == 0, done.out + done.err
    assert "rank 2 is gone (in iteration 5): 1 of 2 ranks are left" in done.err


@pytest.mark.usefixtures("with_ulfm")
def test_deaths_between_the_loops_are_noticed_at_the_next_message(
    program: Callable[..., Finished],
) -> None:
    done = program(3, "surviving.between_loops", mpirun=ULFM)
    assert done.status == 0, done.out + done.err


@pytest.mark.usefixtures("with_ulfm")
def test_without_fault_tolerance_one_line_says_what_is_missing(
    program: Callable[..., Finished],
) -> None:
    done = program(2, "surviving.cannot")
    assert done.status == 0, done.out + done.err
    lines = [line for line in done.out.splitlines() if line.startswith("on_lost_ranks: ")]
    assert len(lines) == 2
    assert lines[0].endswith("(docs/elastic.md); or leave it out")


class OneOfTwoDies:
    """Imitates ``Survivors``: another rank dies before the first agreement."""

    def __init__(self, optimizer: StochasticAPTS) -> None:
        self.comm, self.deaths = optimizer.comm, 1

    def agreed(self, fine: bool) -> bool:
        self.deaths -= 1
        return fine and self.deaths < 0

    def shrink(self) -> Loss:
        return Loss([1], [0, 1], [0])

    def renew(self) -> None:
        pass


def imitating(**options: Any) -> tuple[nn.Module, StochasticAPTS, list[int]]:
    """A network, its optimizer after some steps, and how many are left each time one has died."""
    net, heard = network(), list[int]()
    optimizer = made(net, local_steps=1, **options)
    trained(optimizer, net, minibatches(4))
    optimizer._survivors = OneOfTwoDies(optimizer)  # type: ignore[assignment]
    optimizer._heard = lambda rank, size, iterations: heard.append(size)
    optimizer._remember()
    return net, optimizer, heard


def test_a_death_after_all_have_entered_averaged_has_them_enter_anew() -> None:
    net, optimizer, heard = imitating()
    before = theta(net).clone()
    with optimizer.averaged():
        average = theta(net).clone()
    with optimizer.averaged(net, [X]):
        assert heard == [1]
        assert torch.equal(theta(net), average)
    assert torch.equal(theta(net), before)
    assert not torch.equal(average, before)


def test_a_death_leaves_the_radius_as_cooled() -> None:
    _, optimizer, heard = imitating(steps=8)
    done = optimizer._method_now.done
    optimizer._jointly(lambda: None)
    assert heard == [1]
    assert optimizer._method_now.done == done > 0


def test_who_is_to_hear_of_deaths_is_a_function_on_one_rank_too() -> None:
    with pytest.raises(TypeError, match="on_lost_ranks is no function"):
        StochasticAPTS(network().parameters(), on_lost_ranks=3)  # type: ignore[arg-type]
