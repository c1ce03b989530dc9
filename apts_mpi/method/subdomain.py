"""One subdomain of a rank: its loss over its batch, its gradient, and its local steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from apts_mpi.comm.clock import Clock
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.layers import Layer
from apts_mpi.method.messages import CountedMessages
from apts_mpi.method.options import APTSOptions, StochasticOptions
from apts_mpi.trust_region.local import FirstOrder, LocalResult, LocalSolver, Model, SecondOrder
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.metric import Metric, Span
from apts_mpi.trust_region.objective import Batch, Objective
from apts_mpi.trust_region.scaled import ScaledResult, ScaledSolver


class Subdomain:
    """What subdomains of both methods have.

    Attributes:
        samples: b_i of the batch, which may be 0.
        loss: f_i at the iterate.
        gradient: (n,) float32, g_i where it was evaluated last; the flat one itself where the
            subdomain is alone on its rank.
    """

    def __init__(self, flat: FlatParameters, messages: CountedMessages, *, alone: bool) -> None:
        self._flat, self._messages = flat, messages
        self._objective: Objective = lambda with_gradient: 0.0
        self.samples, self.loss = 0, math.nan
        self.gradient = flat.gradient if alone else torch.zeros_like(flat.gradient)

    def use(self, batch: Batch) -> None:
        """The loss is over this batch from now on."""
        self._objective, self.samples = batch

    def loss_here(self, with_gradient: bool) -> float:
        """f_i at the present parameters; g_i is left in the flat gradient where wanted."""
        if self.samples == 0:
            if with_gradient:
                self._flat.gradient.zero_()
            return 0.0
        return self._messages.evaluate(self._objective, self.samples, with_gradient=with_gradient)

    def evaluate(self, *, with_gradient: bool) -> float:
        """f_i at the present parameters, and with the gradient ``gradient``."""
        loss = self.loss_here(with_gradient)
        if with_gradient and self.gradient is not self._flat.gradient:
            self.gradient.copy_(self._flat.gradient)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, Any], *, resized: bool) -> None:
        """Restore what ``state_dict`` gave; ``resized``: of another number of subdomains."""
        self.loss = float(state["loss"])


class BatchSubdomain(Subdomain):
    """One of ``APTS``, all of whose iteration is on one batch.

    Args:
        flat: the rank's parameters. messages: where its work is counted. options: the method's.
        consistency: whether its local objective is made first-order consistent.

    Attributes:
        weight: w_i, known from the first evaluation of a batch on.
        draws: whether the loss was seen to draw random numbers.
        trial: f_i where it was evaluated last.
        shift: (n,) float32, consistency term ``g - g_i`` at the iterate.
        solver, radius: of the local steps; NaN before the first.
    """

    def __init__(
        self,
        flat: FlatParameters,
        messages: CountedMessages,
        options: APTSOptions,
        *,
        consistency: bool,
    ) -> None:
        super().__init__(flat, messages, alone=options.subdomains == 1)
        self.weight, self.draws, self.trial = 0.0, False, math.nan
        self.shift, self._consistency = torch.zeros_like(flat.vector), consistency
        self.radius = math.nan
        self.solver = LocalSolver(
            flat.vector,
            flat.gradient,
            model_of(options, flat.vector),
            options.radius_rule,
            norm=options.norm,
            steps=options.local_steps,
        )

    @property
    def repeats(self) -> bool:
        """Whether the next batch is this one again."""
        return getattr(self._objective, "repeats", False)

    def evaluate(self, *, with_gradient: bool) -> float:
        """The same, kept as ``trial``; and a look whether the loss draws random numbers."""
        self.trial = super().evaluate(with_gradient=with_gradient)
        self.draws |= getattr(self._objective, "draws", False)
        return self.trial

    def local_steps(self, start: Tensor, g: Tensor, ball: float) -> LocalResult:
        """Leave the subdomain's correction in ``solver.correction``.

        Args:
            start: (n,) theta_k. g: (n,) joined gradient there. ball: bound on the correction.
        """
        solver = self.solver
        if self.samples == 0:  # a subdomain without samples in this batch moves nothing
            solver.correction.zero_()
            return LocalResult(0.0, self.radius, 0, 0, False)
        if math.isnan(self.radius):
            self.radius = ball / solver.steps
        result = solver.run(
            self.loss_here,
            start=start,
            loss=self.loss,
            gradient=g if self._consistency else torch.sub(g, self.shift, out=self._flat.gradient),
            shift=self.shift if self._consistency else None,
            radius=min(self.radius, ball),
            ball=ball,
        )
        self.radius = result.radius
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            **super().state_dict(),
            "radius": self.radius,
            "weight": self.weight,
            "shift": self.shift.clone(),
            "model": self.solver.model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool) -> None:
        """Restore what ``state_dict`` gave; of a resized run nothing is the subdomain's."""
        if resized:
            self.radius = math.nan
            return
        super().load_state_dict(state, resized=resized)
        self.radius, self.weight = float(state["radius"]), float(state["weight"])
        self.shift.copy_(state["shift"])
        self.solver.model.load_state_dict(state["model"])


# Where a polar factor costs as much as the evaluation:
_LAZY = 5  # most steps with the same one
_BLOCK = 128  # most rows or columns of a larger matrix that have one


def model_of(options: APTSOptions, theta: Tensor) -> Model:
    """The model that the options name, of a loss of as many parameters as theta (n,) has."""
    if options.local_solver == "first-order":
        return FirstOrder(options.norm)
    return SecondOrder(LSR1(len(theta), memory=options.memory, device=theta.device))


def hidden_matrices(options: StochasticOptions, flat: FlatParameters) -> list[Layer]:
    """Those that the options give the spectral norm."""
    spectral = options.local_solver == "spectral"
    return [layer for layer in flat.layers() if layer.kind == "hidden"] if spectral else []


def is_shallow(hidden: Sequence[Layer]) -> bool:
    """Whether there are hidden matrices, each applied once to a sample: a fully connected network.

    There a polar factor costs as much as the evaluation: it is kept for some steps, and large
    matrices have those of blocks. And a sample that is learned leaves no gradient, so that steps
    vanish, or their path is bounded (options.py).
    """
    return bool(hidden) and not any(layer.positions for layer in hidden)


def metric_of(options: StochasticOptions, flat: FlatParameters) -> Metric:
    """The metric that the options name."""
    hidden = hidden_matrices(options, flat)
    shallow = is_shallow(hidden)
    every = min(_LAZY, math.ceil(options.local_steps / 4)) if shallow else 1
    part = 0.5 if not shallow else 0.0 if options.classification else 1.0
    most = _BLOCK if shallow else sys.maxsize
    decay = options.weight_decay
    spans = flat.spans or ([Span(flat.n, decay=decay)] if decay else [])
    return Metric(flat.vector, flat.gradient, hidden, spans, every=every, part=part, most=most)


class SampledSubdomain(Subdomain):
    """One of ``StochasticAPTS``, with minibatches.

    Args:
        flat: the rank's parameters. messages: where its work is counted. options: the method's.
        kept: what the rank's solvers share to take steps ahead (trust_region/scaled.py).
        clock: the rank's.

    Attributes:
        loss, samples, gradient: of a minibatch at theta_k.
        solver: of the local steps, with its metric.
    """

    def __init__(
        self,
        flat: FlatParameters,
        messages: CountedMessages,
        options: StochasticOptions,
        *,
        kept: Sequence[Tensor],
        clock: Clock,
    ) -> None:
        super().__init__(flat, messages, alone=options.subdomains == 1)
        self._clock = clock
        self.solver = ScaledSolver(
            flat.vector,
            flat.gradient,
            metric_of(options, flat),
            steps=options.local_steps,
            kept=kept,
            waiting=partial(clock.phase, "gradient"),
        )

    def local_steps(self, start: Tensor, radius: float) -> Generator[None, Batch, ScaledResult]:
        """The solver's ``run`` from start (n,); waiting for a minibatch is not in the phase.

        Where other subdomains have evaluated their gradients, ``gradient`` is the flat one again.
        """
        if self.gradient is not self._flat.gradient:
            self._flat.attach_gradients()
            self._flat.gradient.copy_(self.gradient)
        steps = self.solver.run(start=start, loss=self.loss, samples=self.samples, radius=radius)
        advance = partial(next, steps)
        while True:
            with self._clock.phase("algebra", "local steps"):
                try:
                    advance()
                except StopIteration as done:
                    result: ScaledResult = done.value
                    break
            advance = partial(steps.send, (yield))
        self._messages.count(result.evaluations)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            **super().state_dict(),
            "samples": self.samples,
            "gradient": self.gradient.clone(),
            "local": self.solver.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool) -> None:
        """Restore what ``state_dict`` gave; a run that was resized keeps the metric as well."""
        super().load_state_dict(state, resized=resized)
        self.samples = int(state["samples"])
        self.gradient.copy_(state["gradient"])
        self.solver.load_state_dict(state["local"])
