"""Limited-memory symmetric rank-one (L-SR1) model of the Hessian in compact form.

With the kept steps and gradient differences as the columns of S and Y,

    B = gamma I + Psi M^-1 Psi^T,   Psi = Y - gamma S,   M = D + L + L^T - gamma S^T S,

where ``S^T Y = L + D + R`` splits into strictly lower, diagonal and strictly upper part (Byrd,
Nocedal, Schnabel 1994, doi 10.1007/BF01582063, Theorem 5.1). Psi is never formed: only S and Y are
kept, and all algebra beyond their products with a vector is float64 of size at most 10 by 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Eigen-decomposition ``B = gamma I + P diag(eigenvalues - gamma) P^T``.

    Attributes:
        gamma: eigenvalue on the orthogonal complement of the columns of P; positive.
        eigenvalues: (r,) float64, ascending; those belonging to the columns of P.
        mixing: (k, r) float64; ``P = (Y - gamma S) mixing`` in the order of the memory's slots.
    """

    gamma: float
    eigenvalues: Matrix
    mixing: Matrix


class LSR1:
    """Compact L-SR1 matrix over vectors of length n.

    Args:
        n: length of the vectors.
        memory: most pairs kept, 1 to 10.
        dtype: of the stored vectors; float32 in training, float64 where accuracy is studied.
        device: where they live.
        tolerance: a pair is skipped when ``|s.r| <= tolerance |s| |r|`` for ``r = y - B s`` (the
            denominator test of Nocedal and Wright 2006, eq. 6.26) or ``|s.y| <= tolerance |s| |y|``
            (no curvature to be seen along s).
    """

    def __init__(
        self,
        n: int,
        *,
        memory: int = 5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tolerance: float = 1e-8,
    ) -> None:
        if not 1 <= memory <= 10:
            raise ValueError(f"memory {memory} is outside 1 to 10")
        self.n = n
        self.memory = memory
        # float32 dot products carry noise of about 1e-7: below that a test decides nothing.
        self.tolerance = max(tolerance, 1e-7 if dtype == torch.float32 else 0.0)
        # Psi^T Psi squares the condition number; what is smaller than this is noise.
        self._drop = 1e-6 if dtype == torch.float32 else 1e-11
        self._s = torch.zeros(memory, n, dtype=dtype, device=device)
        self._y = torch.zeros(memory, n, dtype=dtype, device=device)
        self._order: list[int] = []  # slots, oldest first
        self._ss: Matrix = np.zeros((memory, memory))
        self._sy: Matrix = np.zeros((memory, memory))  # row: s, column: y
        self._yy: Matrix = np.zeros((memory, memory))
        self._gamma = 1.0
        self.spectrum = Spectrum(1.0, np.zeros(0), np.zeros((0, 0)))
        self.skipped = 0

    @property
    def pairs(self) -> int:
        """How many pairs are kept."""
        return len(self._order)

    def update(self, s: Tensor, y: Tensor) -> bool:
        """Offer the pair of a step and its gradient difference; returns whether it was kept.

        Args:
            s: (n,) step. y: (n,) difference of the gradients of one function at its two ends.
        """
        ss, sy, yy = _dot(s, s), _dot(s, y), _dot(y, y)
        finite = np.isfinite([ss, sy, yy]).all()
        if not finite or ss == 0.0 or abs(sy) <= self.tolerance * (ss * yy) ** 0.5:
            self.skipped += 1
            return False
        if len(self._order) == self.memory:
            keep, slot = self._order[1:], self._order[0]
        else:
            keep = self._order
            slot = next(i for i in range(self.memory) if i not in keep)
        gram = self._ss.copy(), self._sy.copy(), self._yy.copy()
        _extend(gram, slot, (ss, sy, yy), self._products(s), self._products(y))
        # The largest curvature along the newest step keeps the complement cautious. Where it alone
        # explains the pair, which would then be skipped, the pair is kept beside the old gamma.
        newest = min(yy / sy, 100.0 * (yy / ss) ** 0.5) if sy > 0.0 else self._gamma
        order = [*keep, slot]
        for gamma in (newest, self._gamma):
            spectrum = _decompose(gram, order, gamma, self.tolerance, self._drop, self.memory)
            if spectrum is not None:
                break
        else:
            self.skipped += 1
            return False
        self._s[slot].copy_(s)
        self._y[slot].copy_(y)
        self._order = order
        self._ss, self._sy, self._yy = gram
        self._gamma = gamma
        self.spectrum = spectrum
        return True

    def reset(self) -> None:
        """Forget all pairs: B is the identity again."""
        self._order = []
        self._gamma = 1.0
        self.spectrum = Spectrum(1.0, np.zeros(0), np.zeros((0, 0)))

    def project(self, v: Tensor) -> Matrix:
        """``P^T v``, (r,) float64."""
        if not self._order:
            return np.zeros(0)
        sv, yv = self._products(v)
        projected: Matrix = self.spectrum.mixing.T @ (yv - self.spectrum.gamma * sv)
        return projected

    def add_expansion(self, coefficients: Matrix, out: Tensor) -> None:
        """``out += P coefficients``; coefficients (r,) float64, out (n,)."""
        if not self._order:
            return
        mixed = torch.as_tensor(
            self.spectrum.mixing @ coefficients, dtype=out.dtype, device=out.device
        )
        out.addmv_(self._y.t(), mixed)
        out.addmv_(self._s.t(), mixed, alpha=-self.spectrum.gamma)

    def product(self, v: Tensor) -> Tensor:
        """``B v`` as a new (n,) vector."""
        out = v * self.spectrum.gamma
        shifted = (self.spectrum.eigenvalues - self.spectrum.gamma) * self.project(v)
        self.add_expansion(shifted, out)
        return out

    def _products(self, v: Tensor) -> tuple[Matrix, Matrix]:
        """``S^T v`` and ``Y^T v`` over all slots, (memory,) float64 each."""
        both = torch.stack((self._s @ v, self._y @ v)).double().cpu().numpy()
        return both[0], both[1]

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs; tensors and plain numbers only."""
        return {
            "s": self._s.clone(),
            "y": self._y.clone(),
            "order": list(self._order),
            "gram": torch.from_numpy(np.stack((self._ss, self._sy, self._yy))),
            "gamma": self._gamma,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, for the same n and memory."""
        if tuple(state["s"].shape) != (self.memory, self.n):
            raise ValueError(
                f"state is for (memory, n) = {tuple(state['s'].shape)}, "
                f"this model has {(self.memory, self.n)}"
            )
        self._s.copy_(state["s"])
        self._y.copy_(state["y"])
        self._ss, self._sy, self._yy = (m.copy() for m in state["gram"].double().numpy())
        self.skipped = int(state["skipped"])
        self.reset()
        self._order = [int(i) for i in state["order"]]
        self._gamma = float(state["gamma"])
        if self._order:
            gram = self._ss, self._sy, self._yy
            spectrum = _decompose(
                gram, self._order, self._gamma, self.tolerance, self._drop, self.memory
            )
            if spectrum is None:
                raise ValueError("the stored pairs do not make a valid L-SR1 matrix")
            self.spectrum = spectrum


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))


def _extend(
    gram: tuple[Matrix, Matrix, Matrix],
    slot: int,
    own: tuple[float, float, float],
    with_s: tuple[Matrix, Matrix],
    with_y: tuple[Matrix, Matrix],
) -> None:
    """Write the new pair's row and column into S^T S, S^T Y and Y^T Y."""
    ss, sy, yy = gram
    (s_s, y_s), (s_y, y_y) = with_s, with_y
    ss[slot], ss[:, slot] = s_s, s_s
    yy[slot], yy[:, slot] = y_y, y_y
    sy[:, slot], sy[slot] = s_y, y_s
    ss[slot, slot], sy[slot, slot], yy[slot, slot] = own


def _decompose(
    gram: tuple[Matrix, Matrix, Matrix],
    order: list[int],
    gamma: float,
    tolerance: float,
    drop: float,
    memory: int,
) -> Spectrum | None:
    """The spectrum of B over the pairs in ``order``; None where the newest fails its test.

    gamma changes with every pair, and with it every earlier denominator: the test is therefore run
    again from the oldest pair on. The i-th SR1 denominator is the Schur complement of M's leading
    block, and the residual y_i - B_i s_i is Psi z with the same z, so that both are small algebra.
    """
    ss, sy, yy = (m[np.ix_(order, order)] for m in gram)
    psi = yy - gamma * (sy + sy.T) + gamma**2 * ss  # Psi^T Psi
    lower = np.tril(sy, -1)
    middle = np.diag(np.diag(sy)) + lower + lower.T - gamma * ss  # M
    active: list[int] = []
    for i in range(len(order)):
        z = np.zeros(len(order))
        z[i] = 1.0
        if active:
            z[active] = -np.linalg.solve(middle[np.ix_(active, active)], middle[active, i])
        denominator = float(middle[i] @ z)
        residual = float(z @ psi @ z)
        # A residual lost in rounding says that the model explains the pair already.
        explained = residual <= drop * (yy[i, i] + gamma**2 * ss[i, i])
        threshold = tolerance * (ss[i, i] * max(residual, 0.0)) ** 0.5
        if np.isfinite(denominator) and not explained and abs(denominator) > threshold:
            active.append(i)
    if not active or active[-1] != len(order) - 1:
        return None
    psi, middle = psi[np.ix_(active, active)], middle[np.ix_(active, active)]
    # Orthonormal basis of range(Psi) from its Gram matrix, columns brought to length one first.
    scale = 1.0 / np.sqrt(np.maximum(np.diag(psi), np.finfo(float).tiny))
    size, vectors = np.linalg.eigh(scale[:, None] * psi * scale)
    kept = size > drop * size[-1]
    basis = scale[:, None] * vectors[:, kept] / np.sqrt(size[kept])
    image = basis.T @ psi  # Q^T Psi
    core = image @ np.linalg.solve(middle, image.T)
    values, rotation = np.linalg.eigh((core + core.T) / 2.0)
    mixing = np.zeros((memory, len(values)))
    mixing[[order[i] for i in active]] = basis @ rotation
    if not (np.isfinite(mixing).all() and np.isfinite(values).all()):
        return None
    return Spectrum(gamma, gamma + values, mixing)
