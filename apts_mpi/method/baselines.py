"""What APTS is measured against: data-parallel training with a learning rate.

All are called as ``iterate(draw)``, and every iteration has exactly one message: a vector of length
n, the losses and the samples behind it.

| name | an iteration is | joined |
| --- | --- | --- |
| sgd, adam, adamw, muon, schedule-free, prodigy | one step on the joined minibatch | gradients |
| local-sgd | H steps of SGD on each rank's own minibatches | how far each rank went |
| diloco | H steps of AdamW on each rank's own minibatches | how far each rank went |
| muloco | H steps of Muon on each rank's own minibatches | how far each rank went |

The inner and outer steps are torch's own (method/descent.py) or their authors'
(method/packages.py), over one flat parameter.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.method.descent import Step
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.packages import ScheduleFree
from apts_mpi.method.schedule import CONSTANT, Schedule
from apts_mpi.trust_region.objective import Draw


class Baseline(ABC):
    """What all of them share: equal parameters at the start, and the one message.

    Args:
        flat: the rank's parameters; rank 0's values are broadcast, but for frozen ones, which are
            equal on all ranks. comm: the ranks.
        lr: learning rate. schedule: what it is multiplied by over the run.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        iterations: done so far.
        done: part of the run's work that is done, 0 to 1; the caller sets it before an iteration.
    """

    PER_RANK: ClassVar[tuple[str, ...]] = ("rank",)
    LOST_ON_RESIZE: ClassVar[str] = "nothing"

    done = 0.0

    def __init__(
        self, flat: FlatParameters, comm: Comm, *, lr: float, schedule: Schedule = CONSTANT
    ) -> None:
        self.flat, self.comm, self.lr, self.schedule = flat, comm, lr, schedule
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

    def _rate(self, steps: int = 0) -> float:
        """Of the next step, after so many in this iteration."""
        return self.lr * self.schedule.factor(self.done, steps)

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

    def shared_state(self) -> dict[str, Any]:
        """A copy of the entries of ``state_dict`` that are the same on all ranks."""
        state = self.state_dict()
        return copy.deepcopy({n: v for n, v in state.items() if n not in self.PER_RANK})

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
        flat, comm, schedule: as ``Baseline``'s. step: of any optimizer, with its learning rate.
    """

    def __init__(
        self, flat: FlatParameters, comm: Comm, step: Step, schedule: Schedule = CONSTANT
    ) -> None:
        super().__init__(flat, comm, lr=step.lr, schedule=schedule)
        self._step = step

    def iterate(self, *draws: Draw) -> Iteration:
        """One step; the loss it returns is of the joined minibatch, before the step."""
        (draw,) = draws
        objective, samples = draw()
        losses = samples * float(objective(True)) if samples else 0.0
        result = self._average(losses, samples)
        self._step.lr = self._rate()
        self._step.step(self.flat.vector, self.flat.gradient)
        return result

    def averaged(self) -> AbstractContextManager[None]:
        """Schedule-Free's average of the iterates is evaluated; of others the iterate itself."""
        return self._step.averaged() if isinstance(self._step, ScheduleFree) else nullcontext()

    def _steps(self) -> dict[str, Step]:
        return {"optimizer": self._step}


class LocalSteps(Baseline):
    """H inner steps on the rank's own minibatches, then an outer step along the mean way back.

    The outer gradient is theta_k - sum w_i theta_i, w_i the rank's share of the samples of the
    iteration. A rank takes no step on a minibatch without samples.

    Args:
        flat, comm: as ``Baseline``'s. local_steps: H.
        inner: the steps on minibatches, whose state, a rank's own, stays from one iteration to the
            next. outer: the step along the mean way back.
        schedule: of the inner learning rate; within an iteration it moves on from step to step.
    """

    PER_RANK: ClassVar[tuple[str, ...]] = ("rank", "inner")

    def __init__(
        self,
        flat: FlatParameters,
        comm: Comm,
        local_steps: int,
        inner: Step,
        outer: Step,
        schedule: Schedule = CONSTANT,
    ) -> None:
        if local_steps < 1:
            raise ValueError(f"local_steps {local_steps} must be at least 1")
        super().__init__(flat, comm, lr=inner.lr, schedule=schedule)
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
            for k in range(self.local_steps):
                objective, samples = draw()
                if samples:
                    losses += samples * float(objective(True))
                    self._inner.lr = self._rate(k)
                    self._inner.step(theta, self.flat.gradient)
                    seen += samples
        torch.sub(start, theta, out=self.flat.gradient)
        theta.copy_(start)
        result = self._average(losses, seen)
        self._outer.step(theta, self.flat.gradient)
        return result

    def _steps(self) -> dict[str, Step]:
        return {"inner": self._inner, "outer": self._outer}
