"""Local trust-region steps under sampling noise: fresh minibatches, a linear model.

A step minimises the model in a ball whose norm follows the gradients (metric.py); the next
minibatch judges it. docs/method.md has the reasons.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apts_mpi.trust_region.metric import Metric
from apts_mpi.trust_region.objective import Batch, Objective, Pending

WINDOW = 10  # minibatches whose largest loss a local step is judged against
BLOCK = 32  # most steps that are taken ahead of their judgement; so many minibatches are kept
BLOW_UP = 2.0  # times that loss, or the rank's first one: more than sampling noise


@dataclass(frozen=True)
class ScaledResult:
    """What a rank's local steps did.

    Attributes:
        samples: seen by the steps, the first minibatch included.
        accepted, tried: local steps. evaluations: per-sample gradients that were computed.
    """

    samples: int
    accepted: int
    tried: int
    evaluations: int


@dataclass
class _Progress:
    """How far a rank's local steps have come.

    Attributes:
        radius: of the next step. seen, accepted, tried, evaluations: as the result's.
        pending: whether there is a step that no minibatch has judged yet.
    """

    radius: float
    seen: int
    pending: bool = False
    accepted: int = 0
    tried: int = 0
    evaluations: int = 0


class ScaledSolver:
    """The local steps of one rank; keeps its metric from one outer iteration to the next.

    A host that waits for each loss, to judge by it, leaves a GPU without work meanwhile. So there
    steps are taken ahead, in blocks, and judged afterwards; a block with one that should not have
    been taken is undone and gone through again step by step. What comes out is the same.

    Args:
        vector: (n,) float32, the parameters. gradient: (n,) float32, where a loss leaves its
            gradient. metric: what bounds the steps. steps: local ones per outer iteration.
        kept: three vectors (n,) float32, which several solvers may share, to undo a block from;
            with them steps are taken ahead.
        waiting: a context to wait for a GPU in, the clock's.
    """

    def __init__(
        self,
        vector: Tensor,
        gradient: Tensor,
        metric: Metric,
        *,
        steps: int,
        kept: Sequence[Tensor] = (),
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._vector, self._gradient, self._waiting = vector, gradient, waiting
        self.steps = steps
        self.metric = metric
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._first = -math.inf  # the rank's first loss
        self._kept = tuple(kept)

    def run(
        self, *, start: Tensor, loss: float, samples: int, radius: float
    ) -> Generator[None, Batch, ScaledResult]:
        """Take the steps from the present parameters; they are left where the steps ended.

        Each ``yield`` takes the rank's next minibatch, which judges the last step, at no further
        cost: where its loss is not finite, or blown up against the last ones and the first, the
        rank goes back to the start with a quarter of the radius.

        Args:
            start: (n,) float32, the parameters here.
            loss: on the minibatch whose gradient here is in ``gradient``.
            samples: of that minibatch, which may be 0. radius: of every step.
        """
        progress = _Progress(radius, samples)
        if samples > 0 and math.isfinite(loss) and self._step(radius):
            self._note(loss)
            progress.pending, progress.tried = True, 1
        left = self.steps - 1
        while left > 0:
            if self._kept:
                block = min(left, BLOCK)
                batches = yield from self._ahead(block, progress)
            else:
                block, batches = 1, [(yield)]
            for objective, samples in batches:
                if samples:
                    self._judged_step(objective, samples, start, progress)
            left -= block
        accepted = progress.accepted + progress.pending
        return ScaledResult(progress.seen, accepted, progress.tried, progress.evaluations)

    def _judged_step(
        self, objective: Objective, samples: int, start: Tensor, progress: _Progress
    ) -> None:
        """Judge the last step on a minibatch, and take the next one on its gradient."""
        loss = float(objective(True))
        progress.seen += samples
        progress.evaluations += samples
        if progress.pending and not -math.inf < loss <= self._limit():
            self._vector.copy_(start)
            progress.radius, progress.pending, progress.accepted = progress.radius / 4.0, False, 0
            return
        progress.accepted, progress.pending = progress.accepted + progress.pending, False
        if math.isfinite(loss) and self._step(progress.radius):
            self._note(loss)
            progress.pending, progress.tried = True, progress.tried + 1

    def _ahead(self, count: int, progress: _Progress) -> Generator[None, Batch, list[Batch]]:
        """Take so many steps before their losses are looked at.

        Returns:
            Nothing where all was well; else the minibatches, with all but the work undone.
        """
        metric, mark = self.metric, self.metric.marked()
        vectors = (self._vector, metric.m, metric.v)
        for kept, vector in zip(self._kept, vectors, strict=True):
            kept.copy_(vector)
        batches, losses, squares = list[Batch](), list[float | Pending](), []
        for _ in range(count):
            objective, samples = yield
            batches.append((objective, samples))
            if samples:
                losses.append(objective(True))
                squares.append(torch.dot(self._gradient, self._gradient))
                metric.step(progress.radius)
        progress.evaluations += sum(samples for _, samples in batches)
        noted, first = self._losses.copy(), self._first
        with self._waiting():
            finite = torch.stack(squares).isfinite().tolist() if squares else []
            seen = list(zip(_values(losses), finite, strict=True))
        pending = progress.pending
        for loss, learnable in seen:
            judged = not pending or loss <= self._limit()
            if not (judged and math.isfinite(loss) and learnable):
                break
            self._note(loss)
            pending = True
        else:
            progress.seen += sum(samples for _, samples in batches)
            progress.tried += len(seen)
            progress.accepted += len(seen) - (not progress.pending) if seen else 0
            progress.pending = pending
            return []
        for kept, vector in zip(self._kept, vectors, strict=True):
            vector.copy_(kept)
        metric.back_to(mark)
        self._losses, self._first = noted, first
        return batches

    def _note(self, loss: float) -> None:
        self._first = loss if math.isinf(self._first) else self._first
        self._losses.append(loss)

    def _limit(self) -> float:
        """Largest loss that is no blow-up; losses may be negative.

        A minibatch's loss is heavy-tailed where most samples are learned, so that it is no blow-up
        either while it is near where training began.
        """
        largest = max(self._first, *self._losses)
        return largest + (BLOW_UP - 1.0) * abs(largest)

    def _step(self, radius: float) -> bool:
        """Learn from the gradient and take one step; not from one that is not finite."""
        g = self._gradient
        if not math.isfinite(float(torch.dot(g, g))):
            return False
        self.metric.step(radius)
        return True

    # ---- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            **self.metric.state_dict(),
            "losses": list(self._losses),
            "first": self._first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.metric.load_state_dict(state)
        self._losses = deque(map(float, state["losses"]), maxlen=WINDOW)
        self._first = float(state["first"])


def _values(losses: Sequence[float | Pending]) -> list[float]:
    """Of losses that may still be computed; all together, as waiting for each takes time."""
    tensors = [loss.value.reshape(()) for loss in losses if isinstance(loss, Pending)]
    waited = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(waited) if isinstance(loss, Pending) else loss for loss in losses]
