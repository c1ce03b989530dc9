"""What the tests of the stochastic family run on ranks: ``python programs.py stochastic.NAME``.

Each function asserts on every rank. The reference is a simulation of all ranks in one process, in
float64, whose local steps are those of torch's own Adam.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.momentum import FULL_COSINE
from apts_mpi.trust_region.radius import NoisyRule
from tests.method.problem import data, load, minibatches, network, own_communicator, parameters
from tests.method.stochastic_rank import STEPS, Rank, no_spoiling, spoiled_trial, uneven


def identical_data() -> None:
    """Ranks with the same minibatches do what one rank does."""
    comm = Comm()
    runs = [
        Rank(ranks, lambda i: torch.cat(minibatches(i, 1)))
        for ranks in (comm, Comm(own_communicator()))
    ]
    many, one = runs
    comm.broadcast_tensor(one.theta)
    one.optimizer.average.copy_(one.theta)
    start = many.theta.clone()
    for k in range(6):
        for run in runs:
            if k == 4:
                run.spoil = spoiled_trial(run, lambda loss: loss + 50.0)
            else:
                run.spoil = no_spoiling
        ours, theirs = many.step(), one.step()
        assert ours.accepted == theirs.accepted == (k != 4)
        assert abs(ours.loss - theirs.loss) < 1e-4
        assert abs(ours.radius / theirs.radius - 1.0) < 1e-2
        assert ours.local_accepted == comm.size * theirs.local_accepted
        assert torch.allclose(many.theta, one.theta, atol=2e-4, rtol=0)
        assert torch.allclose(many.optimizer.average, one.optimizer.average, atol=2e-4, rtol=0)
    assert float((many.theta - start).abs().max()) > 0.05, "nothing moved"


class Simulation:
    """All ranks in one process: float64, torch's Adam, and nothing of the package but the rule."""

    def __init__(
        self, ranks: int, start: Tensor, rule: NoisyRule, radius: float, reach: float
    ) -> None:
        self.ranks, self.rule, self.radius, self.reach = ranks, rule, radius, reach
        self.momentum, self.averaging = 0.6, 2.0
        self.theta = start.double()
        self.replicas = [network().double() for _ in range(ranks)]
        self.adams = [torch.optim.Adam(r.parameters(), lr=radius) for r in self.replicas]
        self.moved = torch.zeros_like(self.theta)
        self.average = self.theta.clone()
        self.shares: list[float] = []  # of the momentum, an iteration
        self.losses: deque[float] = deque(maxlen=rule.window)
        self.actual = self.promised = self.ceiling = 0.0
        self.next = self.accepted = 0
        self.kept: list[Tensor] | None = None  # the control batches of an accepted correction

    def draw(self) -> list[Tensor]:
        self.next += 1
        return minibatches(self.next - 1, self.ranks)

    def backward(self, d: int, index: Tensor) -> float:
        x, y = data()
        replica = self.replicas[d]
        replica.zero_grad()
        loss = F.cross_entropy(replica(x[index].double()), y[index])
        loss.backward()
        return float(loss.detach())

    def joined(self, parts: list[Tensor], theta: Tensor) -> tuple[float, Tensor]:
        """Mean loss over all ranks' minibatches there, and its gradient."""
        load(self.replicas[0], theta)
        loss = self.backward(0, torch.cat(parts))
        return loss, torch.cat([_gradient(p) for p in self.replicas[0].parameters()])

    def step(self, extra: float) -> dict[str, float]:
        """An iteration; ``extra`` is added to the loss at the trial point."""
        rounds = [self.draw() if self.kept is None else self.kept]
        rounds += [self.draw() for _ in range(STEPS - 1)]
        correction, total = torch.zeros_like(self.theta), 0
        for d, (replica, adam) in enumerate(zip(self.replicas, self.adams, strict=True)):
            load(replica, self.theta)
            adam.param_groups[0]["lr"] = self.radius
            for parts in rounds:
                self.backward(d, parts[d])
                adam.step()
            seen = sum(len(parts[d]) for parts in rounds)
            correction += seen * (parameters(replica) - self.theta)
            total += seen
        correction /= total
        lengths = float(correction.norm() * self.moved.norm())
        cosine = float(correction @ self.moved) / lengths if lengths else 0.0
        mu = self.momentum * min(max(cosine / FULL_COSINE, 0.0), 1.0)
        self.shares.append(mu)
        moved = mu * self.moved + correction
        s = correction + mu * moved

        control = self.draw()
        before, _ = self.joined(control, self.theta)
        after, gradient = self.joined(control, self.theta + s)
        after += extra
        slope = float(gradient @ s)
        actual = before - after
        promised = 2.0 * actual + slope
        self.losses.append(before)
        accepted = after <= 2.0 * max(self.losses) - min(self.losses)
        self.kept = control if accepted else None
        rule = self.rule
        if accepted:
            self.accepted += 1
            self.theta, self.moved = self.theta + s, moved
            bounded = max(promised, abs(actual) / 2.0)
            self.actual = rule.smoothing * self.actual + (1 - rule.smoothing) * actual
            self.promised = rule.smoothing * self.promised + (1 - rule.smoothing) * bounded
            rho = self.actual / self.promised
            back = min(self.radius * math.sqrt(2.0), self.ceiling)
            if rho > rule.grow_above:
                part = (min(rho, 1.0) - rule.grow_above) / (1.0 - rule.grow_above)
                self.radius = min(self.radius * rule.grow**part, 2.0 * self.reach)
            if rho < rule.shrink_below:
                self.radius *= rule.shrink
                self.ceiling = 0.0
            else:
                self.radius = max(self.radius, min(back, 2.0 * self.reach))
            weight = (1 + self.averaging) / (self.accepted + self.averaging)
            self.average = (1 - weight) * self.average + weight * self.theta
        else:
            self.actual = self.promised = 0.0
            self.moved = torch.zeros_like(self.theta)
            rho = actual / max(promised, abs(actual))
            self.ceiling = 0.8 * self.radius
            self.radius *= 0.5
        return {
            "loss": after if accepted else before,
            "rho": rho,
            "accepted": accepted,
            "radius": self.radius,
            "local_reduction": promised,
        }


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.flatten()


def simulated_ranks() -> None:
    """N ranks with uneven minibatches do what the simulation does, a rejection included."""
    comm = Comm()
    rule = NoisyRule()
    numbers: dict[str, Any] = {"momentum": 0.6, "averaging": 2.0, "radius": 0.02}
    rank = Rank(comm, uneven(comm), local_solver="scaled", rule=rule, **numbers)
    rank.optimizer.now.reach = 0.5  # known, so that it is not searched
    simulation = Simulation(comm.size, rank.theta.clone(), rule, 0.02, 0.5)
    start = rank.theta.clone()
    for k in range(8):
        extra = 50.0 * (k == 4)
        rank.spoil = spoiled_trial(rank, lambda loss, extra=extra: loss + extra)  # type: ignore[misc]
        result, wanted = rank.step(), simulation.step(extra)
        assert result.local_accepted == result.local_tried == STEPS * comm.size
        assert result.accepted == wanted["accepted"] == (extra == 0.0)
        assert abs(result.loss - wanted["loss"]) < 1e-4, (k, result, wanted)
        assert abs(result.local_reduction - wanted["local_reduction"]) < 3e-4, (k, result, wanted)
        assert abs(result.rho - wanted["rho"]) < 1e-2, (k, result, wanted)
        assert abs(result.radius / wanted["radius"] - 1.0) < 1e-2, (k, result, wanted)
        for ours, theirs in (
            (rank.theta, simulation.theta),
            (rank.optimizer.average, simulation.average),
            (rank.optimizer.state_dict()["velocity"], simulation.moved),
        ):
            assert float((ours - theirs).abs().max()) < 1e-4, (k, (ours - theirs).abs().max())
    assert float((rank.theta - start).abs().max()) > 0.05, "nothing moved"
    assert result.radius != 0.02
    assert max(simulation.shares) > 0.1, "momentum never helped"


def restored_ranks() -> None:
    """Every rank loads its own state, and the run goes on bit for bit; another's is refused."""
    comm = Comm()
    for rejected in (False, True):
        first = Rank(comm, uneven(comm)).warm()
        if rejected:
            first.spoil = spoiled_trial(first, lambda loss: loss + 50.0)
            assert not first.step().accepted
            first.spoil = no_spoiling
        second = Rank(comm, uneven(comm))
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        second.theta.copy_(first.theta)
        second.drawn, second.fresh = first.drawn, first.fresh
        for _ in range(4):
            assert repr(first.step()) == repr(second.step())
            assert torch.equal(first.theta, second.theta)
            assert torch.equal(first.optimizer.average, second.optimizer.average)
        state = first.optimizer.state_dict()
        state["options"]["rank"] = (comm.rank + 1) % comm.size
        try:
            second.optimizer.load_state_dict(state)
        except ValueError as error:
            assert "rank" in str(error)
        else:
            raise AssertionError("another rank's state was taken")
