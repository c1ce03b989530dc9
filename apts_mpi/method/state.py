"""The numbers that the methods keep from iteration to iteration, and what they may be.

Beside a method's numbers its saved state has vectors, the states of the subdomains and the options
that it belongs to (frame.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from apts_mpi.files.forms import every, is_count, is_finite, is_flag, is_real, misshapen
from apts_mpi.trust_region.radius import RadiusRule, RelaxationRule

_RULE = RadiusRule()
_MOST = 1e30  # as of --lr


@dataclass
class Numbers:
    """Of both methods.

    Attributes:
        iterations: done so far. radius: Delta; NaN until it is searched.
        known: whether the loss and gradients at the iterate are those that the next iteration
            begins with.
    """

    iterations: int = 0
    radius: float = math.nan
    known: bool = False


@dataclass
class APTSNumbers(Numbers):
    """Of ``APTS``.

    Attributes:
        global_radius: of the global step. relaxation: a, of the joined corrections.
        loss: f at the iterate. moving: whether the last correction was accepted.
    """

    global_radius: float = math.nan
    relaxation: float = 1.0
    loss: float = math.nan
    moving: bool = False


@dataclass
class StochasticNumbers(Numbers):
    """Of ``StochasticAPTS``.

    Attributes:
        accepted: iterations whose correction was taken. reach: displacement that lowered the loss
            at the start. ceiling: what the radius grows back to after a rejection; 0: nothing.
    """

    accepted: int = 0
    reach: float = math.nan
    ceiling: float = 0.0


# ---- what they may be in a checkpoint ----------------------------------------------------------


def _is_radius(value: Any) -> bool:
    return is_real(value) and _RULE.minimum <= value <= _RULE.maximum


def _is_local_radius(value: Any) -> bool:
    """NaN before the first step; it may fall below the least one when the ball does."""
    return is_real(value) and (math.isnan(value) or 0.0 < value <= _RULE.maximum)


def _are_pairs(state: Any) -> bool:
    """Of an L-SR1 model; {} of one that does not learn."""
    if state == {}:
        return True
    if misshapen(state, _PAIRS) is not None or state["s"].dim() != 2:
        return False
    order, memory = state["order"], len(state["s"])
    in_order = len(set(order)) == len(order) and all(slot < memory for slot in order)
    return in_order and state["gram"].shape == (3, memory, memory)


_PAIRS: dict[str, Any] = {
    "s": is_finite,
    "gram": is_finite,
    "order": every(is_count),
    "gamma": lambda value: is_real(value) and 0.0 < value < math.inf,
    "skipped": is_count,
}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_size(value: Any) -> bool:
    """A rate, or what follows one: a step of it must be a number in 32 bits."""
    return isinstance(value, float) and abs(value) <= _MOST


def _is_step(state: Any) -> bool:
    """Of a baseline's step, by the names that torch or its package gives."""
    if not isinstance(state, dict):
        return False
    for form in (_SCHEDULE_FREE, _PRODIGY):
        if set(state) == set(form):
            return misshapen(state, form) is None
    if set(state) == {"step", "exp_avg", "exp_avg_sq"}:
        tensors = all(isinstance(each, Tensor) for each in state.values())
        return tensors and is_finite(state["step"]) and bool((state["step"] >= 0).all())
    buffer = state.get("momentum_buffer")
    return set(state) <= {"momentum_buffer"} and isinstance(buffer, (Tensor, type(None)))


_STEPS = ("optimizer", "inner", "outer")
_SCHEDULE_FREE: dict[str, Any] = {
    **dict.fromkeys(("z", "exp_avg_sq"), _is_tensor),
    "k": is_count,
    "weight_sum": lambda value: isinstance(value, float) and value >= 0.0,
    "lr_max": _is_size,
}
_PRODIGY: dict[str, Any] = {
    **dict.fromkeys(("s", "p0", "exp_avg", "exp_avg_sq"), _is_tensor),
    "k": is_count,
    **dict.fromkeys(("d", "d_max", "d_numerator"), _is_size),
}
# Of a subdomain, of either method.
_SUBDOMAIN: dict[str, Any] = {
    "samples": is_count,
    "loss": is_real,
    "radius": _is_local_radius,
    "weight": lambda value: is_real(value) and 0.0 <= value <= 1.0,
    "local": {
        **{"learned": is_count, "first": is_real, "losses": every(is_real)},
        "usual": is_finite,
    },
    "model": _are_pairs,
}


def _are_subdomains(states: Any) -> bool:
    """By their numbers from 0 up."""
    if not isinstance(states, dict) or set(states) != set(map(str, range(len(states)))):
        return False
    forms = (misshapen(state, _SUBDOMAIN, whole=False) for state in states.values())
    return bool(states) and all(form is None for form in forms)


# Of all optimizers together; none has all of it.
_OPTIMIZER: dict[str, Any] = {
    **dict.fromkeys(("iterations", "accepted"), is_count),
    **dict.fromkeys(("radius", "reach", "global_radius"), _is_radius),
    "subdomains": _are_subdomains,
    "relaxation": lambda value: is_real(value) and 1.0 <= value <= RelaxationRule().maximum,
    "ceiling": lambda value: is_real(value) and value >= 0.0,
    "loss": is_real,
    **dict.fromkeys(("known", "moving"), is_flag),
    **dict.fromkeys(("losses", "ratio"), every(is_real)),
    "signs": {
        **dict.fromkeys(("rejected", "untrue", "unmoved"), is_count),
        **dict.fromkeys(
            ("warned_floor", "warned_rejected", "warned_untrue", "warned_unmoved"), is_flag
        ),
    },
    "lost": every(is_finite, dict),
    "global_model": _are_pairs,
    **dict.fromkeys(_STEPS, _is_step),
}


def require_sound(state: dict[str, Any], *, iterations: int, n: int) -> None:
    """See that all of a saved state is what an iteration can continue from.

    Args:
        iterations: that it has to have done. n: number of parameters.

    Raises:
        ValueError: it is not.
    """
    name = misshapen(state, _OPTIMIZER, whole=False)
    if name is not None:
        raise ValueError(f"the optimizer's {name} cannot be")
    done = state["iterations"]
    if done != iterations or state.get("accepted", 0) > done:
        raise ValueError(f"the optimizer has done {done} iterations")
    if state.get("known") and not state["losses"]:
        raise ValueError("the optimizer knows no losses")
    for name in _STEPS:
        for key, value in state.get(name, {}).items():
            if isinstance(value, Tensor) and value.shape != (() if key == "step" else (n,)):
                raise ValueError(f"the optimizer's {name}.{key} has shape {tuple(value.shape)}")
