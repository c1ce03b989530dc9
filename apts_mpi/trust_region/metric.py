"""The norms that bound a local step, and the step that each makes of a gradient.

m and v are running averages of the rank's gradients and of their squares, corrected for their start
at zero (Kingma and Ba, arXiv 1412.6980), and D = diag(sqrt(v) + eps). Delta is the radius.

1. The diagonal metric: the linear model <m, p> in the ball ``|p|_D <= Delta |m|_{1/D}``, whose
   radius follows the gradient (as in Curtis, Scheinberg and Shi, arXiv 1712.10277); its minimiser
   is ``p = -Delta m / (sqrt(v) + eps)``.
2. The spectral norm: each hidden matrix has a norm of its own. <G, P> in the ball
   ``|P|_2 <= Delta q R``, |.|_2 the largest singular value and R = 0.4 sqrt(max(rows, columns)), is
   least at ``P = -Delta q R polar(G)``, G = 0.9 m + 0.1 g with m not corrected (polar.py;
   Bernstein and Newhouse, arXiv 2409.20325). Its entries have the root mean square 0.4 q Delta,
   so that one Delta bounds all blocks: the whole step is the minimiser in the ball of the norm
   that is the largest of ``|P|_2 / (q R)`` and of the norms in 1. As there the radius follows the
   gradient: q = min(1, |m|^2 / (b^2 z)), z the running average of |m|^2, in the Frobenius norm,
   or 1 with b = 0. Noise, which is in |m| and z alike, does not shorten a step. Where polar factors
   are dear, blocks of a matrix have a norm each: in place of polar(G) the step has those of the
   blocks of G.

Parameters may have a factor on Delta of their own, and a decay w: then a step multiplies them by
``1 - Delta w`` before it moves them (decoupled, as Loshchilov and Hutter, arXiv 1711.05101).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from apts_mpi.trust_region.polar import in_blocks

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8  # as Kingma and Ba
SPECTRAL = 0.4  # of R; measured (docs/trials.md)


class Matrix(Protocol):
    """Where a hidden matrix is in the flat vector."""

    @property
    def rows(self) -> int:
        """Of the matrix."""

    @property
    def columns(self) -> int:
        """Of the matrix."""

    @property
    def part(self) -> slice:
        """Its numbers in the flat vector."""

    def of(self, vector: Tensor) -> Tensor:
        """A view (rows, columns) of a vector (n,)."""


@dataclass(frozen=True)
class Span:
    """Consecutive parameters with settings of their own.

    Attributes:
        stop: where they end in the flat vector; they begin where the span before ends.
        scale: factor on the radius. decay: w, weight decay per unit of the radius.
    """

    stop: int
    scale: float = 1.0
    decay: float = 0.0


class Metric:
    """What bounds the local steps of one subdomain, and what it has learned for that.

    Args:
        vector: (n,) float32, the parameters. gradient: (n,) float32, where a loss leaves its own.
        hidden: the matrices with the spectral norm, in the order of the vector; all else has the
            diagonal metric.
        spans: of the parameters, in order and up to the last one; by default all are alike.
        every: so many steps a hidden matrix has the same polar factor.
        part: b, of a moment's usual length, from which on steps have their full one; 0: always.
        most: of a matrix with both sides longer, rows or columns of a block with a norm of its own.

    Attributes:
        m, v: (n,) float32, running averages of the gradients and of their squares; of a hidden
            matrix v has its last ``polar(G)``.
        learned: gradients that went into the averages.
    """

    def __init__(
        self,
        vector: Tensor,
        gradient: Tensor,
        hidden: Sequence[Matrix] = (),
        spans: Sequence[Span] = (),
        *,
        every: int = 1,
        part: float = 1.0,
        most: int = sys.maxsize,
    ) -> None:
        self.m, self.v = torch.zeros_like(vector), torch.zeros_like(vector)
        self._hidden, borders = list(hidden), {0, len(vector), *(each.stop for each in spans)}
        for each in hidden:
            borders |= {each.part.start, each.part.stop}
        inside = {each.part.start for each in hidden}
        pieces = [slice(a, b) for a, b in pairwise(sorted(borders))]
        self._diagonal = [piece for piece in pieces if piece.start not in inside]
        self._vectors = (vector, gradient, self.m, self.v)
        self._fused = _has_fused(vector.device)
        device = vector.device if self._fused else torch.device("cpu")
        self._counts = [torch.zeros((), device=device) for _ in self._diagonal]  # as torch has it
        self.learned = 0
        self._every, self._part, self._most = every, part, most
        self._usual = vector.new_zeros(len(self._hidden))  # z, not corrected
        self._theta, self._g, self._m, self._polar = (
            [each.of(of) for each in hidden] for of in self._vectors
        )
        self.set_spans(spans or [Span(len(vector))])

    def set_spans(self, spans: Sequence[Span]) -> None:
        """Other factors and decays, of spans that end where those before did."""

        def factor(part: slice) -> float:
            return next(each.scale for each in spans if part.start < each.stop)

        self._factors = [factor(part) for part in self._diagonal]
        self._alike = {
            scale: [k for k, each in enumerate(self._factors) if each == scale]
            for scale in dict.fromkeys(self._factors)
        }
        self._scales = [
            SPECTRAL * math.sqrt(max(each.rows, each.columns)) * factor(each.part)
            for each in self._hidden
        ]
        self._full = self.m.new_tensor(self._scales)
        starts = (0, *(each.stop for each in spans))
        self._decays = [
            (slice(start, each.stop), each.scale * each.decay)
            for start, each in zip(starts, spans, strict=False)
            if each.decay
        ]

    def step(self, radius: float) -> None:
        """Learn from the gradient, and move the parameters."""
        self.learned += 1
        for part, decay in self._decays:
            self._vectors[0][part].mul_(1.0 - radius * decay)
        for scale, which in self._alike.items():
            theta, g, m, v = ([of[self._diagonal[k]] for k in which] for of in self._vectors)
            counts = [self._counts[k] for k in which]
            _adam_step(theta, g, m, v, counts, radius=radius * scale, fused=self._fused)
        if not self._hidden:
            return
        torch._foreach_lerp_(self._m, self._g, 1.0 - FIRST_DECAY)
        if (self.learned - 1) % self._every == 0 or self.learned == 2:  # of averages begun anew
            looking = torch._foreach_lerp(self._m, self._g, 1.0 - FIRST_DECAY)
            torch._foreach_copy_(self._polar, in_blocks(looking, self._most))
        lengths = (self._lengths() if self._part else self._full).mul(-radius).unbind()
        for at, p, length in zip(self._theta, self._polar, lengths, strict=True):
            at.addcmul_(p, length)

    def _squares(self, first: float) -> Tensor:
        """|m|^2 of each hidden matrix, corrected."""
        return torch.stack(torch._foreach_norm(self._m)).div_(first).square_()

    def _lengths(self) -> Tensor:
        """q R of each hidden matrix, times its factor on the radius."""
        first, second = (1.0 - decay**self.learned for decay in (FIRST_DECAY, SECOND_DECAY))
        squares = self._squares(first)
        self._usual.lerp_(squares, 1.0 - SECOND_DECAY)
        least = self._part**2 / second * self._usual
        q = squares.div_(least.clamp_min_(1e-30)).clamp_max_(1.0)
        return q.mul_(self._full)

    def marked(self) -> tuple[int, Tensor]:
        """What ``back_to`` takes, to forget steps; m and v are the caller's to restore."""
        return self.learned, self._usual.clone()

    def back_to(self, mark: tuple[int, Tensor]) -> None:
        """So many gradients count as learned."""
        self.learned = mark[0]
        self._usual.copy_(mark[1])
        for count in self._counts:
            count.fill_(self.learned)

    def share(self, displacement: Tensor, length: float) -> None:
        """Make the joined displacement of all subdomains the first moment of this one.

        A step moves by ``-Delta m / D``; so the mean displacement d_k of steps that are ``length``
        long together stands for the moment ``-d_k D / length``, which has the gradients of all
        subdomains in it and a fraction of this one's noise. No message: d_k is known anyway. A
        polar factor cannot be turned back into a moment: those of hidden matrices stay. Nor is it
        worth a message: their own noise is what shortens the mean of steps of full length.

        What of d_k is decay is no gradient's: some ``-length w theta_k``, theta_k being where the
        steps began, is taken out of it.

        Args:
            displacement: (n,) float32, d_k. length: K Delta, of the local steps.
        """
        if not self.learned:
            return
        first, second = (1.0 - decay**self.learned for decay in (FIRST_DECAY, SECOND_DECAY))
        for part, scale in zip(self._diagonal, self._factors, strict=True):
            m = self.m[part]
            torch.div(self.v[part], second, out=m).sqrt_().add_(EPSILON)
            m.mul_(self._without_decay(displacement, part, length)).mul_(-first / (length * scale))

    def _without_decay(self, displacement: Tensor, part: slice, length: float) -> Tensor:
        for decayed, decay in self._decays:
            if decayed.start <= part.start < decayed.stop:
                theta = self._vectors[0][part]
                return torch.add(displacement[part], theta, alpha=length * decay)
        return displacement[part]

    def extent(self) -> float:
        """The radius of a step as large as the hidden matrices are; infinite without any.

        In the mean square over them of their largest singular values, in which steps are bounded,
        those of a matrix in blocks block by block.
        """
        norms = [float(torch.linalg.matrix_norm(at, 2)) for at in self._theta]
        return math.hypot(*norms) / math.hypot(*self._scales) if any(norms) else math.inf

    def first_step(self, gradient: Tensor) -> float:
        """The step of radius 1 uphill, in place of the first gradient (n,); the slope along it.

        Along the signs, and the polar factors of hidden matrices.
        """
        slope = 0.0
        for part, factor in zip(self._diagonal, self._factors, strict=True):
            slope += factor * float(gradient[part].abs().sum(dtype=torch.float64))
            gradient[part].sign_()
            if factor != 1.0:
                gradient[part].mul_(factor)
        blocks = [each.of(gradient) for each in self._hidden]
        factors = in_blocks(blocks, self._most)
        for block, p, scale in zip(blocks, factors, self._scales, strict=True):
            slope += scale * float((block * p).sum(dtype=torch.float64))
            torch.mul(p, scale, out=block)
        return slope

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        learned, usual = self.marked()
        return {"m": self.m.clone(), "v": self.v.clone(), "learned": learned, "usual": usual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.m.copy_(state["m"])
        self.v.copy_(state["v"])
        learned, usual = int(state["learned"]), state["usual"]
        # Of other layers, or where nobody has looked at it: what is there is usual.
        unknown = len(usual) != len(self._hidden) or (self._part and not usual.any())
        if self._hidden and unknown:
            first, second = (
                1.0 - decay ** max(learned, 1) for decay in (FIRST_DECAY, SECOND_DECAY)
            )
            usual = second * self._squares(first)
        elif not self._hidden:
            usual = self._usual
        self.back_to((learned, usual))


def _adam_step(
    theta: list[Tensor],
    g: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    learned: list[Tensor],
    *,
    radius: float,
    fused: bool,
) -> None:
    """Adam's step with the radius for its learning rate, in place.

    torch's fused one takes a single pass over the vectors; operation by operation it takes ten.
    """
    adam(
        theta,
        g,
        m,
        v,
        [],
        learned,
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
    theta, g, m, v, learned = ([torch.zeros(shape, device=device)] for shape in (1, 1, 1, 1, ()))
    try:
        _adam_step(theta, g, m, v, learned, radius=0.0, fused=True)
    except RuntimeError:
        return False
    return True
