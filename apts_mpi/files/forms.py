"""What the values of a state may be: forms, which say so name by name; and a tensor's bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_MOST = 2**53  # counts and seconds are far below it, and sums of them exact


def is_count(value: Any) -> bool:
    """A whole number from 0 up."""
    return type(value) is int and 0 <= value < _MOST


def is_real(value: Any) -> bool:
    """A number, perhaps NaN or infinite."""
    return type(value) in (int, float)


def is_amount(value: Any) -> bool:
    """A finite number from 0 up."""
    return is_real(value) and 0 <= value < _MOST


def is_word(value: Any) -> bool:
    """Text for one line; tabs are in the name of an MPI library."""
    return isinstance(value, str) and value.replace("\t", " ").isprintable()


def is_finite(value: Any) -> bool:
    """A tensor without NaN and infinity."""
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def is_flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def every(kind: Callable[[Any], bool], of: type = list) -> Callable[[Any], bool]:
    """Whether a value is a list of such, or a dictionary of such by words."""

    def check(value: Any) -> bool:
        if not isinstance(value, of):
            return False
        each: Any = value
        if of is dict:
            return all(map(is_word, each)) and all(map(kind, each.values()))
        return all(map(kind, each))

    return check


def misshapen(state: Any, form: Mapping[str, Any], *, whole: bool = True) -> str | None:
    """The name of the first entry that is not as its form has it; None where all are.

    Args:
        form: by name, a function of a value that says whether it is right, or the form of a
            dictionary. whole: whether all of the form has to be there; what it does not name may
            be anything.
    """
    for name, kind in form.items():
        if not isinstance(state, dict) or name not in state:
            if whole or not isinstance(state, dict):
                return name
        elif callable(kind):
            if not kind(state[name]):
                return name
        elif (inner := misshapen(state[name], kind, whole=whole)) is not None:
            return f"{name}.{inner}"
    return None


def as_bytes(tensor: Tensor) -> Tensor:
    """Of (*shape) numbers of any type their bytes, (*shape, bytes of a number) uint8.

    They share the tensor's memory where it is contiguous.
    """
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return whole.unsqueeze(-1).view(torch.uint8)
