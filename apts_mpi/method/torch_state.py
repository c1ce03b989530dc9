"""A method's state in the form that torch's optimizers have: by parameter, with their groups.

Vectors over all parameters are cut into one tensor per parameter, so that a state can be taken up
where some parameters have been frozen, or others have been added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apts_mpi.method import interface
from apts_mpi.trust_region.metric import FIRST_DECAY, SECOND_DECAY

State = dict[str, Any]


class NoSetting(KeyError):
    """A parameter group does not have what torch's schedulers, say, look for."""

    def __str__(self) -> str:
        return str(self.args[0])


class Group(dict[str, Any]):
    """A parameter group; a learning rate is neither read from it nor written to it."""

    def __missing__(self, name: str) -> Any:
        why = f": {interface.NO_RATE}" if "lr" in name else f" (it has {', '.join(self)})"
        raise NoSetting(f"a parameter group has no {name}{why}")

    def __setitem__(self, name: str, value: Any) -> None:
        if "lr" in name:
            self.__missing__(name)
        super().__setitem__(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As a dict's, but for learning rates."""
        if name not in self:
            self[name] = default
        return self[name]


def vectors_of(state: Mapping[str, Any], n: int, path: str = "") -> dict[str, Tensor]:
    """The tensors (n,) of a state, by their dotted names; not what messages have lost."""
    found = dict[str, Tensor]()
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == (n,):
            found[path + name] = value
        elif isinstance(value, Mapping) and name != "lost":
            found |= vectors_of(value, n, f"{path}{name}.")
    return found


def without(state: Mapping[str, Any], names: Iterable[str], path: str = "") -> State:
    """A state without the entries of these dotted names."""
    left_out = set(names)
    return {
        name: without(value, left_out, f"{path}{name}.") if isinstance(value, Mapping) else value
        for name, value in state.items()
        if path + name not in left_out
    }


def put(state: State, name: str, value: Tensor) -> None:
    """Set the entry of a dotted name."""
    *path, last = name.split(".")
    for part in path:
        state = state.setdefault(part, {})
    state[last] = value


def overlay(state: State, shared: Mapping[str, Any]) -> None:
    """Put what all ranks have alike into a state in torch's form."""
    for number, entries in shared["state"].items():
        state["state"].setdefault(number, {}).update(entries)
    state["method"].update(shared["method"])


def cut(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Copies of a vector's parts, in the parameters' shapes."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.clone().view(p.shape) for part, p in zip(parts, parameters, strict=True)]


def joined(
    name: str, saved: Sequence[Mapping[str, Tensor]], parameters: Sequence[Tensor]
) -> Tensor:
    """The vector of a name; of a parameter without such an entry as it is at first.

    Args:
        saved: entries of each parameter. parameters: to be trained, in the vector's order.
    """
    parts = []
    for entries, p in zip(saved, parameters, strict=True):
        fresh = p.detach() if name in ("iterate", "average") else torch.zeros_like(p)
        parts.append(entries.get(name, fresh).to(p.device).reshape(-1))
    return torch.cat(parts)


def learned_once(local: State) -> None:
    """Local averages as after one gradient, so that parameters without any can join them.

    They are corrected for their start at zero by one count, of all parameters alike. Corrected they
    stay as they are; but later gradients weigh more for a while, as after the first.
    """
    count = local["learned"]
    if count > 1:
        local["m"] *= (1.0 - FIRST_DECAY) / (1.0 - FIRST_DECAY**count)
        for name in ("v", "usual"):
            local[name] *= (1.0 - SECOND_DECAY) / (1.0 - SECOND_DECAY**count)
        local["learned"] = 1


def misfit(state: Any, groups: Sequence[Mapping[str, Any]], shapes: Sequence[torch.Size]) -> str:
    """Why a state is not one of these parameter groups; nothing where it is.

    Args:
        shapes: of all parameters, in the order of the groups.
    """
    keys = {"state", "param_groups", "method"}
    if not isinstance(state, Mapping) or not keys <= set(state):
        return "the state is of another optimizer: load what state_dict() of the same class gave"
    own, theirs = ([len(each["params"]) for each in of] for of in (groups, state["param_groups"]))
    if own != theirs:
        return f"the state has parameter groups of {theirs} parameters, not of {own}"
    for number, entries in state["state"].items():
        for value in entries.values():
            if value.shape != shapes[int(number)]:
                found, expected = tuple(value.shape), tuple(shapes[int(number)])
                return f"the state's parameter {number} has shape {found}, not {expected}"
    return ""
