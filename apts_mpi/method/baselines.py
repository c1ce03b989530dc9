"""What APTS is measured against: data-parallel training with a learning rate.

All are called as ``iterate(draw)``, and every iteration has exactly one message: a vector of length
n, the losses and the samples behind it.

| name | an iteration is | joined |
| --- | --- | --- |
| sgd, adam | one step on the joined minibatch | gradients |
| local-sgd | H steps of SGD on each rank's own minibatches | how far each rank went |
| diloco | H steps of AdamW on each rank's own minibatches | how far each rank went |

The inner and outer steps are torch's own (method/descent.py), over one flat parameter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.method.descent import SGD, Adam, Step
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import SGD_MOMENTUM
from apts_mpi.trust_region.objective import Draw


class Baseline(ABC):
    """What all of them share: equal parameters at the start, and the one message.

    Args:
        flat: the rank's parameters; rank 0's values are broadcast, but for frozen ones, which are
            equal on all ranks. comm: the ranks.
        lr: learning rate, for the line about a loss that is not finite.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        iterations: done so far.
    """

    PER_RANK: ClassVar[tuple[str, ...]] = ("rank",)
    LOST_ON_RESIZE: ClassVar[str] = "nothing"

    def __init__(self, flat: FlatParameters, comm: Comm, *, lr: float) -> None:
        self.flat, self.comm, self.lr = flat, comm, lr
        self.iterations = 0
        self._message = message_for("none", flat.n, 2, flat.vector.device, comm)
        comm.require_same("a network", flat.describe())
        comm.broadcast_tensor(flat.vector)

    @abstractmethod
    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; every rank calls it.

        Args:
            draws: one: the loss over this rank's next minibatch, and its samples, which may be 0.

        Raises:
            FloatingPointError: on every rank, where a loss or what they join is not finite on any.
            ValueError: on every rank, where all of them have 0 samples.
        """

    def _average(self, losses: float, samples: int) -> Iteration:
        """Replace every rank's flat gradient by the mean over the ranks' samples; one message.

        Args:
            losses: sum over this rank's samples. samples: seen since the last call.
        """
        joined, gradient = self._message.vector, self.flat.gradient
        torch.mul(gradient, samples, out=joined)
        total, count = self.comm.sum_message(self._message, (losses, float(samples)))
        if not count > 0:
            raise ValueError(f"the ranks' batches have {count:g} samples together")
        torch.div(joined, count, out=gradient)
        # Both are joined numbers, so that no rank continues alone.
        what = "gradient" if math.isfinite(total) else "loss"
        if what == "loss" or not bool(gradient.isfinite().all()):
            raise FloatingPointError(
                f"the {what} of iteration {self.iterations + 1} is not finite: lower --lr "
                f"(now {self.lr:g}), or look for bad samples in the data"
            )
        self.iterations += 1
        return Iteration(loss=total / count, accepted=True, gradient_evaluations=count)

    def averaged(self) -> AbstractContextManager[None]:
        """The iterate itself is evaluated."""
        return nullcontext()

    @abstractmethod
    def _steps(self) -> dict[str, Step]:
        """The steps with their states, by their names in a saved state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a restart needs; tensors and plain numbers.

        Every rank saves its state and loads it again; but for the entries that ``PER_RANK`` names
        it is the same on all of them.
        """
        states = {name: step.state_dict() for name, step in self._steps().items()}
        return {"rank": [self.comm.rank, self.comm.size], "iterations": self.iterations, **states}

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore what ``state_dict`` gave on the same rank.

        Args:
            resized: the state is of a run with another number of ranks, of any of them.

        Raises:
            ValueError: the state is another rank's, or of another optimizer or network.
        """
        own = [self.comm.rank, self.comm.size]
        if not resized and state["rank"] != own:
            raise ValueError(f"the state is of rank and ranks {state['rank']}, not {own}")
        device = self.flat.vector.device
        for name, step in self._steps().items():
            kept = {}
            for key, value in state[name].items():
                if isinstance(value, Tensor):
                    if value.numel() not in (1, self.flat.n):
                        raise ValueError(f"the state's {key} has {value.numel()} numbers")
                    value = value.to("cpu" if key == "step" else device, copy=True)
                kept[key] = value
            step.load_state_dict(kept)
        self.iterations = int(state["iterations"])


class GradientAveraging(Baseline):
    """One step on the joined minibatch: gradients averaged over all samples.

    Args:
        flat, comm, lr: as ``Baseline``'s. step: SGD or Adam.
    """

    def __init__(self, flat: FlatParameters, comm: Comm, *, lr: float, step: Step) -> None:
        super().__init__(flat, comm, lr=lr)
        self._step = step

    def iterate(self, *draws: Draw) -> Iteration:
        """One step; the loss it returns is of the joined minibatch, before the step."""
        (draw,) = draws
        objective, samples = draw()
        losses = samples * float(objective(True)) if samples else 0.0
        result = self._average(losses, samples)
        self._step.step(self.flat.vector, self.flat.gradient)
        return result

    def _steps(self) -> dict[str, Step]:
        return {"optimizer": self._step}


class LocalSteps(Baseline):
    """H inner steps on the rank's own minibatches, then an outer step along the mean way back.

    The outer gradient is theta_k - sum w_d theta_d, w_d the rank's share of the samples of the
    iteration. A rank takes no step on a minibatch without samples.

    Args:
        flat, comm, lr: as ``Baseline``'s. local_steps: H.
        inner: the steps on minibatches, whose state, a rank's own, stays from one iteration to the
            next. outer: the step along the mean way back.
    """

    PER_RANK: ClassVar[tuple[str, ...]] = ("rank", "inner")

    def __init__(
        self,
        flat: FlatParameters,
        comm: Comm,
        *,
        lr: float,
        local_steps: int,
        inner: Step,
        outer: Step,
    ) -> None:
        if local_steps < 1:
            raise ValueError(f"local_steps {local_steps} must be at least 1")
        super().__init__(flat, comm, lr=lr)
        self.local_steps, self._inner, self._outer = local_steps, inner, outer
        self._start = torch.zeros_like(flat.vector)  # theta_k

    def iterate(self, *draws: Draw) -> Iteration:
        """H local steps and their joining.

        The loss it returns is the mean over all minibatches of the iteration, each before the step
        on it.
        """
        theta, start = self.flat.vector, self._start
        (draw,) = draws
        start.copy_(theta)
        losses, seen = 0.0, 0
        with self.comm.clock.phase("algebra", "local steps"):
            for _ in range(self.local_steps):
                objective, samples = draw()
                if samples:
                    losses += samples * float(objective(True))
                    self._inner.step(theta, self.flat.gradient)
                    seen += samples
        torch.sub(start, theta, out=self.flat.gradient)
        theta.copy_(start)
        result = self._average(losses, seen)
        self._outer.step(theta, self.flat.gradient)
        return result

    def _steps(self) -> dict[str, Step]:
        return {"inner": self._inner, "outer": self._outer}


def local_sgd(
    flat: FlatParameters,
    comm: Comm,
    *,
    lr: float,
    local_steps: int,
    momentum: float = SGD_MOMENTUM,
) -> LocalSteps:
    """Local SGD (Stich, ICLR 2019, arXiv 1805.09767): the ranks' parameters are averaged.

    That is an outer step of length one. The paper's steps have no momentum; here it is as sgd's,
    so that the two differ in their messages alone, and its buffers stay local.
    """
    inner, outer = SGD(lr=lr, momentum=momentum), SGD(lr=1.0)
    return LocalSteps(flat, comm, lr=lr, local_steps=local_steps, inner=inner, outer=outer)


def diloco(flat: FlatParameters, comm: Comm, *, lr: float, local_steps: int) -> LocalSteps:
    """DiLoCo (Douillard et al. 2023, arXiv 2311.08105): AdamW inside, Nesterov's momentum outside.

    As published: weight decay 0.1, outer learning rate 0.7, outer momentum 0.9. Unlike there, the
    inner learning rate is constant, without warm-up and decay.
    """
    inner, outer = Adam(lr=lr, decay=0.1), SGD(lr=0.7, momentum=0.9, nesterov=True)
    return LocalSteps(flat, comm, lr=lr, local_steps=local_steps, inner=inner, outer=outer)


def baseline(
    name: str, flat: FlatParameters, comm: Comm, *, lr: float, local_steps: int
) -> Baseline:
    """A baseline by its name in the settings; ``local_steps`` of those that take any.

    Raises:
        KeyError: no baseline has that name.
    """
    if name in ("sgd", "adam"):
        step: Step = Adam(lr=lr) if name == "adam" else SGD(lr=lr, momentum=SGD_MOMENTUM)
        return GradientAveraging(flat, comm, lr=lr, step=step)
    build = {"local-sgd": local_sgd, "diloco": diloco}[name]
    return build(flat, comm, lr=lr, local_steps=local_steps)
