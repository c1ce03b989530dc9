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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from apts_mpi.flat import FlatParameters
from apts_mpi.iteration import Draw

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8  # as Kingma and Ba
WINDOW = 10  # minibatches whose largest loss a local step is judged against
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


class ScaledSolver:
    """The local steps of one rank; keeps m and v from one outer iteration to the next.

    Args:
        flat: the rank's parameters. steps: local steps an outer iteration.

    Attributes:
        m, v: (n,) float32, running averages of the gradients and of their squares.
    """

    def __init__(self, flat: FlatParameters, *, steps: int) -> None:
        self._flat = flat
        self.steps = steps
        self.m, self.v = torch.zeros_like(flat.vector), torch.zeros_like(flat.vector)
        self._learned = torch.zeros(())
        self._fused = _has_fused(flat.vector.device)
        if self._fused:
            self._learned = self._learned.to(flat.vector.device)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._first = -math.inf  # the rank's first loss

    def run(
        self, draw: Draw, *, start: Tensor, loss: float, samples: int, radius: float
    ) -> ScaledResult:
        """Take the steps from the present parameters; they are left where the steps ended.

        The next step's minibatch judges the last step, at no further cost: where its loss is not
        finite, or blown up against the last ones and the first, the rank goes back to the start
        with a quarter of the radius.

        Args:
            draw: the rank's next minibatches.
            start: (n,) float32, the parameters here.
            loss: on the minibatch whose gradient here is in ``flat.gradient``.
            samples: of that minibatch, which may be 0. radius: of every step.
        """
        flat, seen, accepted, evaluations = self._flat, samples, 0, 0
        # Whether there is a step that no minibatch has judged yet.
        pending = samples > 0 and math.isfinite(loss) and self._step(radius)
        if pending:
            self._note(loss)
        tried = int(pending)
        for _ in range(self.steps - 1):
            objective, samples = draw()
            if not samples:
                continue
            loss = objective(True)
            seen, evaluations = seen + samples, evaluations + samples
            if pending and not -math.inf < loss <= self._limit():
                flat.vector.copy_(start)
                radius, pending, accepted = radius / 4.0, False, 0
                continue
            accepted, pending = accepted + pending, False
            if math.isfinite(loss) and self._step(radius):
                self._note(loss)
                pending, tried = True, tried + 1
        return ScaledResult(seen, accepted + pending, tried, evaluations)

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
        g = self._flat.gradient
        if not math.isfinite(float(torch.dot(g, g))):
            return False
        vectors = (self._flat.vector, g, self.m, self.v, self._learned)
        _adam_step(*vectors, radius=radius, fused=self._fused)
        return True

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

    @property
    def learned(self) -> int:
        """Gradients that went into the averages."""
        return int(self._learned)

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
        self._learned.fill_(int(state["learned"]))
        self._losses = deque(map(float, state["losses"]), maxlen=WINDOW)
        self._first = float(state["first"])


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
