"""What the tests of the stochastic family run on ranks: ``python programs.py stochastic.NAME``

Each function asserts on every rank. The reference is a simulation of all ranks in one process, in
float64, whose local steps are those of torch's own Adam.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import stochastic
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.stochastic import StochasticAPTS
from apts_mpi.trust_region.radius import NoisyRule
from tests.devices import DEVICE
from tests.method.problem import data, load, minibatches, network, own_communicator, parameters

STEPS = 4
Spoil = Callable[[int, bool, Tensor], Tensor]


def no_spoiling(_draw: int, _with_gradient: bool, loss: Tensor) -> Tensor:
    return loss


class Rank:
    """This rank's network, optimizer and minibatches: the i-th drawn is the i-th of ``indices``.

    ``spoil`` changes a loss, told the number of the draw in the iteration and whether the gradient
    is wanted. ``work`` is what this rank has evaluated in the iteration, in samples' gradients.
    """

    def __init__(
        self,
        comm: Comm,
        indices: Callable[[int], Tensor],
        samples: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> None:
        self.comm, self.indices = comm, indices
        self.x, self.y = data() if samples is None else samples
        self.module = network(seed=comm.rank)  # rank 0's values are everyone's
        options = {"shared": False, "momentum": 0.5, "ahead": False, **options}
        options = {"local_steps": STEPS, **options}
        self.optimizer = StochasticAPTS(self.module.parameters(), comm=comm, **options)
        self.steps = int(options["local_steps"])
        self.drawn = self.draws = 0
        self.fresh = True
        self.spoil: Spoil = no_spoiling
        self.work = 0.0
        self.calls: list[tuple[int, bool, Tensor]] = []

    @property
    def theta(self) -> Tensor:
        return self.optimizer.flat.vector

    @property
    def control(self) -> int:
        """Number of the coming iteration's control batch."""
        return self.steps - 1 + self.fresh

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        index, draw = self.indices(self.drawn), self.draws
        self.drawn += 1
        self.draws += 1

        def closure() -> Tensor:
            assert len(index), "a loss over no samples was asked for"
            grad = torch.is_grad_enabled()
            self.work += len(index) * (1.0 if grad else 1 / 3)
            self.calls.append((draw, grad, self.theta.clone()))
            return self.spoil(
                draw, grad, F.cross_entropy(self.module(self.x[index]), self.y[index])
            )

        return closure, len(index)

    def step(self) -> Iteration:
        """An iteration; what holds of every one is asserted."""
        comm, traffic = self.comm, self.comm.traffic
        self.work, self.draws, self.calls = 0.0, 0, []
        first, control = self.optimizer.iterations == 0, self.control
        before = copy.copy(traffic)
        result = self.optimizer.step(self.batches)
        sent = (
            traffic.vector_allreduces - before.vector_allreduces,
            traffic.scalar_allreduces - before.scalar_allreduces,
        )
        if not first:
            assert sent == (1, 1 if result.local_accepted else 0), sent
        assert (traffic.broadcasts, traffic.agreements) == (before.broadcasts, before.agreements)
        assert self.draws == control + 1
        self.fresh = not result.accepted
        comm.check_replicas(self.theta)
        comm.check_replicas(self.optimizer.average)
        state = self.optimizer.state_dict()
        comm.check_replicas(state["moved"])
        numbers = [result.loss, result.rho, result.radius, result.local_reduction]
        comm.require_same("results", [repr(result), repr(self.optimizer.radius)])
        comm.check_replicas(torch.tensor(numbers))
        (work,) = comm.sum_scalars((self.work,))
        assert abs(work - result.gradient_evaluations) < 1e-6, (work, result.gradient_evaluations)
        assert self.optimizer.rule.minimum <= result.radius <= 2.0 * self.optimizer.now.reach
        for name in ("m", "v"):
            assert bool(state["subdomains"]["0"]["local"][name].isfinite().all())
        assert bool(self.theta.isfinite().all())
        return result

    def warm(self, count: int = 3) -> Rank:
        """So many iterations, the last of them accepted."""
        while count > 0 or self.fresh:
            self.step()
            count -= 1
        return self


def uneven(comm: Comm) -> Callable[[int], Tensor]:
    """Minibatches of which rank d has about d + 1 shares."""
    return lambda i: minibatches(i, comm.size)[comm.rank]


# ---- against references ------------------------------------------------------------------------


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


def spoiled_trial(rank: Rank, spoil: Callable[[Tensor], Tensor]) -> Spoil:
    """The coming iteration's joined trial goes wrong."""
    control = rank.control
    return lambda draw, grad, loss: spoil(loss) if draw == control and grad else loss


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
        self.actual = self.promised = 0.0
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
        mu = self.momentum * min(max(stochastic._AGREEMENT * cosine, 0.0), 1.0)
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
            if rho > rule.grow_above:
                part = (min(rho, 1.0) - rule.grow_above) / (1.0 - rule.grow_above)
                self.radius = min(self.radius * rule.grow**part, 2.0 * self.reach)
            elif rho < rule.shrink_below:
                self.radius *= rule.shrink
            weight = (1 + self.averaging) / (self.accepted + self.averaging)
            self.average = (1 - weight) * self.average + weight * self.theta
        else:
            self.actual = self.promised = 0.0
            self.moved = torch.zeros_like(self.theta)
            rho = actual / max(promised, abs(actual))
            minimum = promised / (promised + slope) if promised > 0.0 and slope > 0.0 else 0.5
            self.radius *= min(max(minimum, 0.1), 0.5)
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
    rank = Rank(comm, uneven(comm), momentum=0.6, averaging=2.0, rule=rule, radius=0.02)
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
            (rank.optimizer.state_dict()["moved"], simulation.moved),
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


# ---- bad luck ----------------------------------------------------------------------------------


def is_last(comm: Comm) -> bool:
    """One rank alone."""
    return comm.rank == comm.size - 1


def lone_bad_step() -> None:
    """A local loss or gradient that is not finite on one rank: that one goes back, all go on."""
    comm = Comm()

    def overflow(draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return loss * math.inf if draw == 2 and is_last(comm) else loss

    def steep(draw: int, _grad: bool, loss: Tensor) -> Tensor:
        bad = draw == 1 and is_last(comm)
        return loss + (torch.sqrt(loss - loss.detach()) if bad else 0.0)  # slope infinite at 0

    # Three steps are taken back and one is not taken; or that one alone.
    for spoil, missing in ((overflow, 4), (steep, 1)):
        rank = Rank(comm, uneven(comm), local_steps=5).warm()
        learned = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        theta = rank.theta.clone()
        rank.spoil = spoil
        result = rank.step()
        assert result.local_accepted == comm.size * rank.steps - missing, result
        went_back = [torch.equal(call[2], theta) for call in rank.calls if call[0] == 3]
        assert went_back == [spoil is overflow and is_last(comm)]
        after = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        assert after - learned == rank.steps - is_last(comm)
        rank.spoil = no_spoiling
        rank.warm()
        assert not torch.equal(rank.theta, theta)


def all_steps_taken_back() -> None:
    """Where nothing has moved on any rank nothing is accepted, and the radius shrinks."""
    comm = Comm()
    rank = Rank(comm, uneven(comm)).warm()
    theta, average = rank.theta.clone(), rank.optimizer.average.clone()
    control = rank.control
    rank.spoil = lambda draw, _grad, loss: loss * math.inf if draw < control else loss
    for fresh in (0, 1):
        radius = rank.optimizer.radius
        control = rank.control
        result = rank.step()
        assert not result.accepted
        # What the last control batch has left is one step; of a spoilt fresh one there is none.
        assert (result.local_accepted, result.local_tried) == (0, 0 if fresh else comm.size)
        assert result.radius < radius
        assert torch.equal(rank.theta, theta)
        assert torch.equal(rank.optimizer.average, average)
    rank.spoil = no_spoiling
    rank.warm()
    assert not torch.equal(rank.theta, theta)


def lone_bad_iterate() -> None:
    """A loss at theta_k that is not finite on one rank is the same error on all."""
    comm = Comm()
    for count in (0, 2):
        rank = Rank(comm, uneven(comm))
        if count:
            rank.warm(count)
        theta, control = rank.theta.clone(), rank.control
        first = count == 0

        def spoil(
            draw: int, grad: bool, loss: Tensor, first: bool = first, control: int = control
        ) -> Tensor:
            bad = draw == 0 and grad if first else draw == control and not grad
            return loss * math.nan if bad and is_last(comm) else loss

        rank.spoil = spoil
        line = "nothing was raised"
        try:
            rank.step()
        except FloatingPointError as error:
            line = str(error)
        told = f"the loss at the start of iteration {rank.optimizer.iterations + 1} is nan"
        assert line.startswith(told), line
        comm.require_same("an error", [line])
        assert torch.equal(rank.theta, theta)


def lone_bad_trial() -> None:
    """A loss or gradient at the trial point that is not finite on one rank is rejected by all."""
    comm = Comm()
    ways: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda loss: loss * math.nan,
        lambda loss: loss + math.inf,  # its gradient is as it was
        lambda loss: loss + torch.sqrt(loss - loss.detach()),
    )
    for way in ways:
        rank = Rank(comm, uneven(comm)).warm()
        theta, average = rank.theta.clone(), rank.optimizer.average.clone()
        radius = rank.optimizer.radius
        if is_last(comm):
            rank.spoil = spoiled_trial(rank, way)
        result = rank.step()
        assert not result.accepted
        assert not torch.equal(rank.calls[-1][2], theta), "nothing was tried"
        assert torch.equal(rank.theta, theta)
        assert torch.equal(rank.optimizer.average, average)
        assert not rank.optimizer.state_dict()["moved"].any()
        assert 0.1 * radius <= result.radius <= 0.5 * radius
        rank.spoil = no_spoiling
        rank.warm()
        assert not torch.equal(rank.theta, theta)


def rank_without_samples() -> None:
    """A rank whose minibatches are empty, always or now and then, takes part; all empty is told."""
    comm = Comm()
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = torch.arange(len(data()[0]))

    def never(_i: int) -> bool:
        return comm.rank != 0

    def at_times(i: int) -> bool:
        return (i + comm.rank) % 3 != 0

    for has_samples in (never, at_times):

        def indices(i: int, has_samples: Callable[[int], bool] = has_samples) -> Tensor:
            return uneven(comm)(i) if has_samples(i) else nothing

        rank = Rank(comm, indices)
        with torch.no_grad():
            first = float(F.cross_entropy(rank.module(rank.x[whole]), rank.y[whole]))
        for _ in range(15):
            rank.step()
        with torch.no_grad():
            last = float(F.cross_entropy(rank.module(rank.x[whole]), rank.y[whole]))
        assert last < 0.8 * first, (first, last)
        learned = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        assert (learned == 0) == (has_samples is never and comm.rank == 0)

    for count in (0, 2):
        rank = Rank(comm, uneven(comm))
        if count:
            rank.warm(count)
        rank.indices = lambda _i: nothing
        try:
            rank.optimizer.step(rank.batches)
        except ValueError as error:
            assert "no samples" in str(error)
        else:
            raise AssertionError("no samples at all were taken")


# ---- ranks that are unlike ---------------------------------------------------------------------


def problem(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes of 6 features, about equally many of each, without noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 6)).astype(np.float32)
    y = np.digitize(x[:, 0] + x[:, 1] + x[:, 2] * 0.5, [-0.65, 0.65])
    return torch.as_tensor(x), torch.as_tensor(y)


def accuracy(rank: Rank) -> float:
    """On clean test data, of the average."""
    x, y = problem(1000, seed=10**6)
    with rank.optimizer.averaged(), torch.no_grad():
        return float((rank.module(x).argmax(1) == y).float().mean())


def trained_to(spoil: Spoil, samples: tuple[Tensor, Tensor], iterations: int = 25) -> float:
    """Accuracy after some iterations over minibatches of 32 of these samples."""
    comm = Comm()
    rng = np.random.default_rng(comm.rank)
    rank = Rank(comm, lambda _i: torch.as_tensor(rng.integers(0, 400, 32)), samples)
    rank.optimizer._subdomains[0].local.steps = rank.steps = 8
    rank.spoil = spoil
    chance = accuracy(rank)
    assert chance < 0.6
    taken = [rank.step().accepted for _ in range(iterations)]
    assert sum(taken) > iterations // 2
    return accuracy(rank)


def mislabelled_rank() -> None:
    """One rank of the four has random labels: the others' truth prevails."""
    comm = Comm()
    x, y = problem(400, seed=comm.rank)
    if is_last(comm):
        y = torch.randint(0, 3, (400,), generator=torch.Generator(DEVICE).manual_seed(0))
    right = trained_to(no_spoiling, (x, y))
    assert right > 0.75, right


def unlike_losses() -> None:
    """One rank's loss is a thousand times as large, or nothing it could learn from."""
    comm = Comm()

    def loud(_draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return 1000.0 * loss if is_last(comm) else loss

    def flat(_draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return 0.0 * loss + 5.0 if is_last(comm) else loss

    for spoil in (loud, flat):
        right = trained_to(spoil, problem(400, seed=comm.rank))
        assert right > 0.8, (spoil, right)
