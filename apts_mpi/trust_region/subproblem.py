"""Trust-region subproblems: minimise ``<g, p> + 1/2 <p, B p>`` over a ball.

The L-SR1 subproblem is solved exactly, through the eigenvalues of B that differ from gamma (Brust,
Erway, Marcia 2017, doi 10.1007/s10589-016-9868-3). A minimiser p and its multiplier sigma satisfy

    (B + sigma I) p = -g,   sigma >= 0,   sigma (radius - |p|) = 0,   B + sigma I positive semidef.

(Conn, Gould, Toint 2000, Corollary 7.2.2), the conditions the tests check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.trust_region.lsr1 import LSR1


@dataclass(frozen=True)
class Step:
    """What a subproblem's solution promises.

    Attributes:
        predicted: reduction of the model, ``-(<g, p> + 1/2 <p, B p>)``, not negative.
        hits_boundary: whether p uses the whole radius. length: |p| in the norm of the radius.
        multiplier: sigma; 0 for an interior solution, NaN for a first-order step.
    """

    predicted: float
    hits_boundary: bool
    length: float
    multiplier: float = math.nan


def first_order_step(g: Tensor, radius: float, out: Tensor) -> Step:
    """Steepest descent in the 2-norm, ``p = -radius g / |g|``, written to ``out`` (n,)."""
    norm = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if norm == 0.0:
        out.zero_()
        return Step(0.0, False, 0.0)
    torch.mul(g, -radius / norm, out=out)
    return Step(radius * norm, True, radius)


def box_step(g: Tensor, displacement: Tensor, radius: float, ball: float, out: Tensor) -> Step:
    """Steepest descent in the infinity norm, kept inside the ball around the outer iterate.

    ``p = -radius sign(g)`` clipped so that ``|displacement + p|_inf <= ball``: the exact minimiser
    of a linear model over the intersection of two boxes.

    Args:
        g: (n,) gradient. displacement: (n,) from the ball's centre to here. out: (n,) takes p.
    """
    torch.sign(g, out=out)
    out.mul_(-radius).add_(displacement).clamp_(-ball, ball).sub_(displacement)
    predicted = -float(torch.dot(g, out))
    return Step(max(predicted, 0.0), predicted > 0.0, float(out.abs().max()))


def lsr1_step(g: Tensor, model: LSR1, radius: float, out: Tensor) -> Step:
    """The exact minimiser of the L-SR1 model in the 2-norm ball, written to ``out`` (n,)."""
    spectrum = model.spectrum
    inside = model.project(g)
    total = float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2
    # Component of g on which B is gamma I; rounding may push the difference below zero.
    outside = max(total - float(inside @ inside), 0.0)
    if len(spectrum.eigenvalues) == model.n:
        outside = 0.0
    values = np.append(spectrum.eigenvalues, spectrum.gamma)
    slopes = np.append(inside, math.sqrt(outside))
    sigma, along, tail = _secular(values, slopes, radius)
    # p = -(g - P P^T g) / (gamma + sigma) + P along
    scale = -1.0 / (spectrum.gamma + sigma)
    torch.mul(g, scale, out=out)
    model.add_expansion(along - scale * inside, out)
    predicted = -float(inside @ along + 0.5 * spectrum.eigenvalues @ along**2)
    predicted += tail * math.sqrt(outside) - 0.5 * spectrum.gamma * tail**2
    length = math.sqrt(float(along @ along) + tail**2)
    return Step(max(predicted, 0.0), length >= radius * (1.0 - 1e-6), length, sigma)


def _secular(
    values: NDArray[np.float64], slopes: NDArray[np.float64], radius: float
) -> tuple[float, NDArray[np.float64], float]:
    """Solve the diagonal problem: minimise ``slopes.v + 1/2 sum values v^2``, ``|v| <= radius``.

    The last entry stands for the whole complement; its value, gamma, is positive.

    Returns:
        sigma, the coordinates of v but the last, and the length of the last component.
    """
    lowest = float(values.min())
    shifted = values - lowest  # distances from the lowest eigenvalue keep the hard case accurate
    floor = max(lowest, 0.0)  # tau = sigma + lowest is at least this

    def coordinates(tau: float) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            v = -slopes / (shifted + tau)
        v[slopes == 0.0] = 0.0
        return v

    size = float(np.linalg.norm(slopes))
    start = coordinates(floor)
    tiny = 64 * np.finfo(float).eps * size
    if floor == 0.0:
        # Where g has no part along the lowest eigenvectors, sigma can be -lowest itself.
        flat = shifted <= 64 * np.finfo(float).eps * float(np.abs(values).max())
        if float(np.linalg.norm(slopes[flat])) <= tiny:
            start = np.where(flat, 0.0, start)
            gap = radius**2 - float(start @ start)
            if gap >= 0.0:  # the hard case: fill up to the boundary along a lowest eigenvector
                if lowest < 0.0:
                    start[int(np.argmax(flat))] = math.sqrt(gap)
                return -lowest, start[:-1], -float(start[-1])
    elif float(np.linalg.norm(start)) <= radius:
        return 0.0, start[:-1], -float(start[-1])

    low, high = floor, floor + size / radius  # |v(high)| <= radius
    tau = high
    for _ in range(100):
        v = coordinates(tau)
        length = float(np.linalg.norm(v))
        if length > radius:
            low = tau
        else:
            high = tau
        if abs(length - radius) <= 4 * np.finfo(float).eps * radius:
            break
        # Newton on 1/radius - 1/|v(tau)|, which is nearly linear and concave in tau.
        slope = float(v**2 @ (1.0 / (shifted + tau)))
        tau_next = tau + (length - radius) / radius * length**2 / slope if slope > 0 else low
        if not low < tau_next < high:
            tau_next = math.sqrt(low * high) if low > 0 else (low + high) / 2
            if not low < tau_next < high:
                break
        tau = tau_next
    v = coordinates(tau)
    return tau - lowest, v[:-1], -float(v[-1])
