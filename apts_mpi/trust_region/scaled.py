"""Local trust-region steps under sampling noise: fresh minibatches, a diagonally scaled metric.

m and v are running averages of the rank's gradients and of their squares, corrected for their start
at zero (Kingma and Ba, arXiv 1412.6980), and D = diag(sqrt(v) + eps). A step minimises the linear
model <m, p> in the ball ``|p|_D <= r |m|_{1/D}``, whose radius follows the gradient (as in Curtis,
Scheinberg and Shi, arXiv 1712.10277); the minimiser is ``p = -r m / (sqrt(v) + eps)``.
docs/method.md has the reasons.
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
from torch.optim.adam import adam

from apts_mpi.trust_region.objective import Batch, Objective, Pending

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8  # as Kingma and Ba
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
    """The local steps of one rank; keeps m and v from one outer iteration to the next.

    A host that waits for each loss, to judge by it, leaves a GPU without work meanwhile. So there
    steps are taken ahead, in blocks, and judged afterwards; a block with one that should not have
    been taken is undone and gone through again step by step. What comes out is the same.

    Args:
        vector: (n,) float32, the parameters. gradient: (n,) float32, where a loss leaves its
            gradient. steps: local steps per outer iteration.
        kept: three vectors (n,) float32, which several solvers may share, to undo a block from;
            with them steps are taken ahead.
        waiting: a context to wait for a GPU in, the clock's.

    Attributes:
        m, v: (n,) float32, running averages of the gradients and of their squares.
        learned: gradients that went into the averages.
    """

    def __init__(
        self,
        vector: Tensor,
        gradient: Tensor,
        *,
        steps: int,
        kept: Sequence[Tensor] = (),
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._vector, self._gradient, self._waiting = vector, gradient, waiting
        self.steps = steps
        self.m, self.v = torch.zeros_like(vector), torch.zeros_like(vector)
        self.learned = 0
        self._learned = torch.zeros((), device="cpu")  # the same, as torch's step wants it
        self._fused = _has_fused(vector.device)
        if self._fused:
            self._learned = self._learned.to(vector.device)
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
        vectors, learned = (self._vector, self.m, self.v), self.learned
        for kept, vector in zip(self._kept, vectors, strict=True):
            kept.copy_(vector)
        batches, losses, squares = list[Batch](), list[float | Pending](), []
        for _ in range(count):
            objective, samples = yield
            batches.append((objective, samples))
            if samples:
                losses.append(objective(True))
                squares.append(torch.dot(self._gradient, self._gradient))
                self._learn(progress.radius)
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
        self._set_learned(learned)
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
        self._learn(radius)
        return True

    def _learn(self, radius: float) -> None:
        self.learned += 1
        vectors = (self._vector, self._gradient, self.m, self.v, self._learned)
        _adam_step(*vectors, radius=radius, fused=self._fused)

    def _set_learned(self, learned: int) -> None:
        self.learned = learned
        self._learned.fill_(learned)

    def share(self, displacement: Tensor, radius: float) -> None:
        """Make the joined displacement of all subdomains the first moment of this one.

        A step of the radius r moves by ``-r m / D``; so the mean displacement d of a subdomain's
        ``steps`` stands for the moment ``-d D / (steps r)``, which has the gradients of all
        subdomains in it and a fraction of this one's noise. No message: d is known anyway.

        Args:
            displacement: (n,) float32, joined. radius: of the steps that made it.
        """
        if not self.learned:
            return
        first, second = (1.0 - decay**self.learned for decay in (FIRST_DECAY, SECOND_DECAY))
        torch.div(self.v, second, out=self.m).sqrt_().add_(EPSILON)
        self.m.mul_(displacement).mul_(-first / (self.steps * radius))

    # ---- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "m": self.m.clone(),
            "v": self.v.clone(),
            "learned": self.learned,
            "losses": list(self._losses),
            "first": self._first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.m.copy_(state["m"])
        self.v.copy_(state["v"])
        self._set_learned(int(state["learned"]))
        self._losses = deque(map(float, state["losses"]), maxlen=WINDOW)
        self._first = float(state["first"])


def _values(losses: Sequence[float | Pending]) -> list[float]:
    """Of losses that may still be computed; all together, as waiting for each takes time."""
    tensors = [loss.value.reshape(()) for loss in losses if isinstance(loss, Pending)]
    waited = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(waited) if isinstance(loss, Pending) else loss for loss in losses]


def _adam_step(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, learned: Tensor, *, radius: float, fused: bool
) -> None:
    """Adam's step with the radius for its learning rate, in place.

    torch's fused one takes a single pass over the vectors; operation by operation it takes ten.
    """
    adam(
        [theta],
        [g],
        [m],
        [v],
        [],
        [learned],
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=FIRST_DECAY,
        beta2=SECOND_DECAY,
        lr=radius,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )


def _has_fused(device: torch.device) -> bool:
    """Whether torch has the fused step there: on the CPU from version 2.4 on."""
    theta, g, m, v, learned = (torch.zeros(shape, device=device) for shape in (1, 1, 1, 1, ()))
    try:
        _adam_step(theta, g, m, v, learned, radius=0.0, fused=True)
    except RuntimeError:
        return False
    return True
