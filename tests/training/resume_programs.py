"""What the tests of resuming run on every rank: ``python programs.py resume.NAME...``.

One MPI job does many runs, as ranks start slowly. Runs are on the digits.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from apts_mpi.comm.communicator import STOP, Comm
from apts_mpi.errors import AgreedError
from apts_mpi.training.loop import Training
from tests.training.digit_runs import begin, go_on, rows

SHORT = ["--local-steps", "7"]
WAYS = {
    "scaled": ["--batch", "60", *SHORT],
    "int4": ["--compress", "int4", "--batch", "60", *SHORT],
    "spectral": ["--local-solver", "spectral", "--epochs", "20", *SHORT],
    "sr1": ["--local-solver", "sr1", "--batch", "100"],
    "whole": ["--local-solver", "sr1"],
    "halves": ["--local-solver", "sr1", "--batch", "400"],  # on three ranks; on four all of a part
    "first-order": ["--local-solver", "first-order", "--norm", "inf", "--window", "3"],
    "adam": ["--optimizer", "adam"],
    "sgd": ["--optimizer", "sgd", "--lr", "0.05"],
    "local-sgd": ["--optimizer", "local-sgd", *SHORT],
    "diloco": ["--optimizer", "diloco", *SHORT],
    **{
        name: ["--optimizer", name, "--epochs", "4", "--schedule", "cosine", "--warmup", "25"]
        for name in ("adamw", "muon", "schedule-free")
    },
    "prodigy": ["--optimizer", "prodigy", "--lr", "3"],  # else it has hardly moved by the end
    "muloco": ["--optimizer", "muloco", *"--epochs 20 --schedule wsd --warmup 10".split(), *SHORT],
}
for name, package in {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}.items():
    if find_spec(package) is None:  # of an extra
        del WAYS[name]
ELSEWHERE = ["scaled", "sr1", "halves", "adam", "local-sgd", "diloco", "muon", "muloco"]
ELSEWHERE += [name for name in ("schedule-free", "prodigy") if name in WAYS]
ITERATIONS, STOPPED = 5, 3


def stopped(training: Training, iteration: int) -> str:
    """Run until a rank wishes to stop in that iteration; the line all ranks raise."""

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == iteration - 1 and training.comm.rank == training.comm.size - 1:
            training.comm.wish(STOP)

    try:
        training.run(heard)
    except AgreedError as error:
        assert error.status == 3, error
        return str(error)
    raise AssertionError("the run has not stopped")


def same_results(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name, value in one.items():
        if name in ("scalar_allreduces", "bytes_allreduced"):  # to start twice has its own
            assert value < two[name] < value + 3000, (name, value, two[name])
        elif not name.startswith("seconds"):
            assert two[name] == value, (name, value, two[name])
    assert two["seconds_total"] > 0


def as_if_never_stopped() -> None:
    """With every optimizer: parameters, metrics, counts of messages, bit for bit."""
    for name, flags in WAYS.items():
        whole = begin(f"{name}-whole", *flags, "--iterations", str(ITERATIONS))
        summary = whole.run()
        part = begin(f"{name}-part", *flags, "--iterations", str(ITERATIONS))
        line = stopped(part, STOPPED)
        assert f"after iteration {STOPPED}, checkpoint" in line, line
        torch.rand(7)  # what else uses random numbers does not matter
        again = go_on(f"{name}-part")
        assert again.progress.iterations == STOPPED
        same_results(summary, again.run())
        assert torch.equal(whole.built.network.vector, again.built.network.vector), name
        assert rows(f"{name}-part") == rows(f"{name}-whole"), name


def leave_for_others() -> None:
    """Runs that are stopped in the middle of a pass, for jobs of other sizes."""
    for name in ELSEWHERE:
        part = begin(f"{name}-left", *WAYS[name], "--iterations", "60")
        stopped(part, STOPPED)
        np.save(f"{name}-vector-{part.comm.rank}.npy", part.built.network.vector.numpy())
        np.save(f"{name}-radius.npy", getattr(part.built.optimizer, "radius", 0.0))


def go_on_elsewhere() -> None:
    """From the same iterate, radius and place on another number of ranks; and it trains on."""
    comm = Comm()
    every = 1 if comm.size < 3 else 2  # some do where there are ranks without a state
    for name in ELSEWHERE[::every]:
        out = f"{name}-on-{comm.size}"
        before = rows(f"{name}-left")
        training = go_on(f"{name}-left", out=out, iterations=6)
        assert training.progress.iterations == STOPPED
        assert np.array_equal(
            training.built.network.vector.numpy(), np.load(f"{name}-vector-0.npy")
        )
        radius = getattr(training.built.optimizer, "radius", 0.0)
        assert radius == np.load(f"{name}-radius.npy")
        legs = training.built.subdomains[0].batches.place(comm.size).legs
        assert [leg.ranks for leg in legs][:1] == [3] or not legs
        summary = training.run()
        after = rows(out)
        assert after[:STOPPED] == before
        assert len(after) == summary["outer_iterations"] == 6
        assert summary["train_loss"] < before[0]["loss"]
        # What goes on from there is a run like any other: on as many ranks bit for bit.
        if name == "scaled":
            again = go_on(out, iterations=8)
            twice = go_on(out, iterations=8, out=f"{out}-twice")
            again.run()
            twice.run()
            assert torch.equal(again.built.network.vector, twice.built.network.vector)


def the_rest_of_a_pass() -> None:
    """It is drawn first and alone, also where minibatches are all of a part from then on."""
    training = go_on("halves-left", out="rest", iterations=STOPPED + 3)
    drawn = [
        training.comm.sum_scalars([float(training.built.subdomains[0].draw()[1])])[0]
        for _ in range(3)
    ]
    assert drawn == [1437 - 3 * 240, 1437, 1437], drawn
    twice = go_on("halves-left", out="rest-1", iterations=STOPPED + 1)
    twice.run()
    again = go_on("rest-1", iterations=STOPPED + 3)
    again.run()
    once = go_on("halves-left", out="rest-2", iterations=STOPPED + 3)
    once.run()
    assert torch.equal(once.built.network.vector, again.built.network.vector)
