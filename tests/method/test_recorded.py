"""Recorded updates of the methods: a few iterations on a tiny network, as computed before.

``python -m tests.method.test_recorded --write`` records them anew on one rank, under
``mpirun -n 2`` on two. To be done only where what is computed is meant to change.

Neither random numbers nor losses in float32 are in it, so that another machine differs by rounding
alone: some 1e-6 of the numbers, which the L-SR1 updates amplify a hundredfold, and so do polar
factors of matrices with more rows than there are samples (6e-4 from AVX-512 to AVX2), as they give
what rounding leaves in the other directions the length of a gradient's.

Each record has the version of its method, ``apts_mpi.version.METHODS``, by which results are known
to be of an earlier one: where figures change, the version must.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.iteration import Iteration
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.trust_region.radius import FIRST_ORDER_RULE, NoisyRule
from apts_mpi.version import METHODS as VERSIONS
from tests.conftest import Launch
from tests.method.driving import Deterministic, Stochastic

RECORDED = Path(__file__).with_name("recorded.json")
ITERATIONS, SAMPLES, BATCH = 4, 60, 16
NEAR = {"sr1": 1e-3, "blocks": 1e-2}  # of the others 1e-4
SIZES = ((1, 60_000), (2, 60_000), (8, 50_000), (16, 1437), (64, 60_000))  # ranks, samples
CHOSEN = ("batch", "local_steps", "epochs", "momentum", "window", "cooldown", "averaging", "norm")

METHODS: dict[str, dict[str, Any]] = {
    "default": {"local_steps": 4, "ahead": False},
    "classification": {"local_steps": 4, "ahead": False, "classification": True},
    # Of a matrix that has several.
    "blocks": {"local_steps": 4, "ahead": False, "classification": True},
    # The task has no effect in these.
    "many positions": {"local_steps": 4, "ahead": False, "classification": True},
    "scaled": {"local_solver": "scaled", "local_steps": 4, "ahead": False, "classification": True},
    "own moments": {"local_steps": 4, "ahead": False, "shared": False, "momentum": 0.3},
    "sr1": {"local_solver": "sr1", "local_steps": 2},
    "first-order": {"local_solver": "first-order"},
}
CASES = [(method, subdomains) for method in METHODS for subdomains in (1, 3)]

Record = dict[str, Any]


def waves(*shape: int, pitch: float) -> Tensor:
    """Numbers from -1 to 1 that need no generator, float64."""
    count = torch.Size(shape).numel()
    return torch.sin(pitch * torch.arange(1, count + 1, dtype=torch.float64) ** 1.5).view(shape)


class Tiny(nn.Module):
    """Inputs, hidden units, three classes; float32 parameters, loss in float64.

    With three dimensions the first matrix counts as applied to many positions.
    """

    def __init__(self, inputs: int = 4, width: int = 5, *, many: bool = False) -> None:
        super().__init__()
        self.shape = inputs, width
        self.first = nn.Parameter(waves(*self.shape, *[1] * many, pitch=0.7).float())
        self.last = nn.Parameter(waves(width, 3, pitch=0.9).float())
        self.bias = nn.Parameter(waves(3, pitch=1.1).float())
        self.x = waves(SAMPLES, inputs, pitch=1.3)
        self.y = (self.x[:, 0] > 0.2).long() + (self.x[:, 1] * self.x[:, 2] > 0.0).long()

    def loss(self, index: Tensor) -> Tensor:
        hidden = torch.tanh(self.x[index] @ self.first.double().view(self.shape))
        return cross_entropy(hidden @ self.last.double() + self.bias.double(), self.y[index])


def record(method: str, subdomains: int, comm: Comm) -> Record:
    """What some iterations did, and where the parameters are then."""
    size, options = (130, 132) if method == "blocks" else (4, 5), METHODS[method]
    net = Tiny(*size, many=method == "many positions")
    drawn = [0] * subdomains

    def minibatch(k: int) -> tuple[Callable[[], Tensor], int]:
        place = 23 * (comm.rank * subdomains + k) + 7 * drawn[k]
        drawn[k] += 1
        samples = BATCH - 5 * k  # of another number in every subdomain
        index = (place + 11 * torch.arange(samples)) % SAMPLES
        return lambda: net.loss(index), samples

    def step() -> Iteration:
        if isinstance(optimizer, Stochastic):
            return optimizer.step(*[lambda k=k: minibatch(k) for k in range(subdomains)])
        closures, samples = zip(*map(minibatch, range(subdomains)), strict=True)
        return optimizer.step(*closures, samples=list(samples))

    kind = Stochastic if "ahead" in options else Deterministic
    optimizer = kind(net.parameters(), comm=comm, subdomains=subdomains, **options)
    done = [step() for _ in range(ITERATIONS)]
    return {
        "loss": [each.loss for each in done],
        "rho": [each.rho for each in done],
        "radius": [each.radius for each in done],
        "theta": optimizer.flat.vector[:: max(7, optimizer.flat.n // 20)].tolist(),
        "decisions": [
            [each.accepted, each.global_accepted, each.local_accepted, each.local_tried]
            for each in done
        ],
        "version": VERSIONS[options.get("local_solver", "spectral")],
    }


def defaults(solver: str) -> Record:
    """What the program chooses where nothing is given, of figures and of text."""
    runs = [
        completed(TrainConfig(local_solver=solver), ranks, samples, task=task)
        for ranks, samples in SIZES
        for task in ("classification", "language")
    ]
    chosen = [[getattr(run, name) for name in CHOSEN] for run in runs]
    return {"chosen": chosen, "version": VERSIONS[solver]}


def name_of(method: str, subdomains: int, ranks: int) -> str:
    return f"{method}, {ranks} x {subdomains} subdomains"


def all_records(comm: Comm) -> dict[str, Record]:
    """Of this number of ranks."""
    torch.set_num_threads(1)
    updates = {name_of(*case, comm.size): record(*case, comm) for case in CASES}
    return updates | {f"defaults of {solver}": defaults(solver) for solver in VERSIONS}


def differing(method: str, found: Record, expected: Record) -> list[str]:
    """What of it is not as recorded."""
    exact, near = ("decisions", "chosen", "version"), NEAR.get(method, 1e-4)
    return [
        name
        for name, values in expected.items()
        if found[name] != (values if name in exact else pytest.approx(values, rel=near))
    ]


def unversioned(records: dict[str, Record], before: dict[str, Record]) -> list[str]:
    """The records that are not as before although their version is."""
    return [
        name
        for name in records.keys() & before.keys()
        if "version" not in (changed := differing(name.split(",")[0], records[name], before[name]))
        and changed
    ]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Record]:
    records: dict[str, Record] = json.loads(RECORDED.read_text())
    return records


@pytest.mark.parametrize(("method", "subdomains"), CASES)
def test_one_rank_computes_what_was_recorded(
    recorded: dict[str, Record], method: str, subdomains: int
) -> None:
    found = record(method, subdomains, Comm())
    assert differing(method, found, recorded[name_of(method, subdomains, 1)]) == []


def test_two_ranks_compute_what_was_recorded(recorded: dict[str, Record], launch: Launch) -> None:
    done = launch(2, "-m", "tests.method.test_recorded")
    found = json.loads(done.out)
    for method, subdomains in CASES:
        name = name_of(method, subdomains, 2)
        assert differing(method, found[name], recorded[name]) == [], name


@pytest.mark.parametrize("solver", VERSIONS)
def test_the_program_chooses_what_was_recorded(recorded: dict[str, Record], solver: str) -> None:
    assert defaults(solver) == recorded[f"defaults of {solver}"]


def test_other_figures_need_another_version(recorded: dict[str, Record]) -> None:
    name = name_of("sr1", 1, 1)
    changed = {**recorded[name], "loss": [0.0] * ITERATIONS}
    assert unversioned(recorded, recorded) == []
    assert unversioned({**recorded, name: changed}, recorded) == [name]
    raised = {**changed, "version": changed["version"] + 1}
    assert unversioned({**recorded, name: raised}, recorded) == []


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("default", {"rule": NoisyRule(smoothing=0.707)}),
        ("own moments", {"momentum": 0.303}),
        ("sr1", {"momentum": 0.505}),
        ("first-order", {"rule": replace(FIRST_ORDER_RULE, shrink=0.505)}),
    ],
)
def test_a_factor_that_is_a_hundredth_off_is_seen(
    recorded: dict[str, Record],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: dict[str, Any],
) -> None:
    monkeypatch.setitem(METHODS, method, {**METHODS[method], **options})
    found = record(method, 3, Comm())
    assert differing(method, found, recorded[name_of(method, 3, 1)]) != []


if __name__ == "__main__":
    of_all = Comm()
    records = all_records(of_all)
    if of_all.rank == 0 and "--write" in sys.argv:
        before = json.loads(RECORDED.read_text())
        if names := unversioned(records, before):
            sys.exit(f"{', '.join(names)}: raise METHODS in apts_mpi/version.py first")
        lines = [f"{json.dumps(n)}: {json.dumps(r)}" for n, r in {**before, **records}.items()]
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    elif of_all.rank == 0:
        print(json.dumps(records))
