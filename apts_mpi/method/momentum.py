"""Momentum: what earlier corrections add to the joined one, d_k, which all ranks know alike.

1. Of ``APTS`` (heavy ball; not in the paper): s_k = d_k + beta s_{k-1}, where s_{k-1} was accepted.
   To the reduction that d_k promises it adds -beta <g, s_{k-1}>. beta is cut such that
   |s_k| <= Delta, and 0 where that would cost half the promised reduction.
2. Of ``StochasticAPTS`` (Nesterov's): u_k = mu u_{k-1} + d_k, s_k = d_k + mu u_k,
   mu = mu_0 min(1, max(0, 4 cos(d_k, u_{k-1}))), so that it stops where the corrections turn away.

The first moment that the subdomains of the stochastic family share is ``Metric.share``
(trust_region/metric.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from apts_mpi.trust_region.local import norm_of

FULL_COSINE = 0.25  # from which on mu is mu_0


def add_heavy_ball(
    s: Tensor, d: Tensor, g: Tensor, *, share: float, reduction: float, radius: float, norm: str
) -> float:
    """Formula 1; returns the reduction that s_k promises.

    Args:
        s: (n,) s_{k-1}, which becomes s_k. d: (n,) d_k. g: (n,) gradient at theta_k.
        share: largest beta. reduction: promised by d_k. radius: Delta. norm: of it.
    """
    beta, gain = 0.0, 0.0
    if share > 0.0:
        room = max(radius - norm_of(d, norm), 0.0)
        beta = min(share, room / max(norm_of(s, norm), 1e-300))
        gain = -beta * float(torch.dot(g, s))
        if not gain > -0.5 * reduction:
            beta, gain = 0.0, 0.0
    s.mul_(beta).add_(d)
    return reduction + gain


def add_nesterov(d: Tensor, u: Tensor, *, largest: float) -> Tensor:
    """Formula 2; returns s_k, in place of d_k.

    Args:
        d: (n,) d_k. u: (n,) u_{k-1}, which becomes u_k. largest: mu_0.
    """
    mu = 0.0
    if largest > 0.0:
        lengths = float(torch.linalg.vector_norm(d)) * float(torch.linalg.vector_norm(u))
        if lengths > 0.0:
            cosine = float(torch.dot(d, u)) / lengths
            mu = largest * min(max(cosine / FULL_COSINE, 0.0), 1.0)
    u.mul_(mu).add_(d)
    return d.add_(u, alpha=mu)
