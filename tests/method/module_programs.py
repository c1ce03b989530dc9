"""What the tests of modules run on several ranks, by programs.py."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi import APTS, StochasticAPTS, broadcast_module
from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError
from apts_mpi.networks.task import Task

FIGURES = ("train_loss", "test_loss", "test_accuracy", "gradient_evaluations")
FLAGS = ("--network", "own:network", "--batch", "60", "--local-steps", "3", "--threads", "1")


class Unlike(nn.Module):
    """Frozen parts and buffers that every rank draws for itself; one changes in training."""

    salt = 0
    table: Tensor
    hidden: Tensor
    seen: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        rng = np.random.default_rng(Comm().rank + self.salt)
        for name, kept in (("table", True), ("hidden", False)):
            drawn = torch.from_numpy(rng.random((64, 8)).astype("f4"))
            self.register_buffer(name, drawn, persistent=kept)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.frozen.weight.data += float(rng.random())
        self.head = nn.Linear(16, task.outputs)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 8, 8) to (b, outputs)."""
        x = x.flatten(1)
        h, other = self.frozen(x @ self.table) / 8, x @ self.hidden / 8
        if self.training:
            self.seen = 0.9 * self.seen + h.detach().mean(0)
        outputs: Tensor = self.head(torch.cat([h - self.seen, other], 1))
        return outputs


def _told(*arguments: str) -> str:
    """What rank 0 is told, on standard output and on the other."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        assert main(list(arguments), Comm()) == 0
    return Comm().broadcast_text(out.getvalue())


def _trained(out: str, *arguments: str) -> tuple[dict[str, Any], str]:
    told = _told("train", *FLAGS, *arguments, "--out", out)
    summary: dict[str, Any] = json.loads(Path(out, "summary.json").read_text())
    return summary, told


def _own(network: Any) -> None:
    sys.modules["own"] = types.ModuleType("own")
    sys.modules["own"].network = network  # type: ignore[attr-defined]


def unlike_at_the_start() -> None:
    """Rank 0's are everybody's, told once; the figures are those of the checkpoint."""
    _own(lambda task: Unlike(task))
    whole, told = _trained("unlike", "--iterations", "4", "--checkpoint-every", "2")
    assert re.search(r"frozen\.weight and 2 more differed from rank to rank", told), told
    Unlike.salt = 100  # what the function draws is not what the run has, or the state leaves out
    rows = _told("evaluate", "unlike", "--network", "own:network")
    Unlike.salt = 0
    assert re.search(rf"loss +{whole['test_loss']:.5f}\n", rows), (whole, rows)
    _trained("part", "--iterations", "2", "--evaluate-every", "1e9")
    again, _ = _trained("part", "--resume", "part", "--iterations", "4")
    assert [whole[name] for name in FIGURES] == [again[name] for name in FIGURES]


def refused_on_one_rank() -> None:
    """What fails on one rank alone is one line on all of them, before anything is trained."""
    rank = Comm().rank

    class Failing(Unlike):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled() and rank == 1:
                raise ValueError("bad luck")
            return super().forward(x)

    _own(lambda task: Failing(task))
    try:
        _trained("failing", "--iterations", "2")
    except AgreedError as error:
        line = str(error)
        assert "fails in training on 2 samples" in line, line
        assert re.search(r"module_programs\.py:\d+, in forward: ValueError: bad luck", line), line
        assert "(rank 1)" in line
        assert error.status == 2
        return
    raise AssertionError("trained all the same")


def classes_take_rank_zeros() -> None:
    """Frozen parameters that are in the iterable, and by a call all that a module has."""
    comm = Comm()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("apts_mpi")
    log.handlers = [handler]
    for build in (APTS, StochasticAPTS):
        torch.manual_seed(comm.rank)
        frozen = nn.Linear(3, 4).requires_grad_(False).to(torch.bfloat16)
        module = nn.Sequential(frozen, nn.Linear(4, 2))
        lines.clear()
        build(module.parameters(), comm=comm)
        comm.require_same("frozen", [str(p.sum().item()) for p in module.parameters()])
        assert len(lines) == (comm.rank == 0), lines
        assert all("frozen parameter 0 of shape (4, 3) and 1 more differed" in x for x in lines)
    torch.manual_seed(comm.rank)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer("flags", torch.rand(7) > 0.5)
    module.register_buffer("angles", torch.polar(torch.ones(3), torch.rand(3)), persistent=False)
    module.register_buffer("none", torch.zeros(0), persistent=False)
    broadcast_module(module, comm)
    both = (*module.named_parameters(), *module.named_buffers())
    comm.require_same("a module", [f"{name} {each.tolist()}" for name, each in both])
