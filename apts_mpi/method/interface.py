"""What a caller hands to the optimizers, checked where it comes in: a line with a remedy each."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.options import shown

NO_RATE = (
    "there is no learning rate to set or schedule, steps follow the trust region: radius is the "
    "first, radius_scale of a parameter group scales its steps, steps=... lets them fall to 0 at "
    "the end of the run"
)
_HABITS = {  # of torch's optimizers
    "lr": NO_RATE,
    "lr_scheduler": NO_RATE,
    "parameters": "its first argument is params",
    "subdomains": "a rank has one in a loop of your own, start more ranks",
    "max_grad_norm": "there is nothing to clip, a step's length is the trust region's",
}
INDEPENDENT = (
    "the closure's loss does not depend on the parameters: compute it by the module whose "
    "parameters were given, without detach(), no_grad() or inference_mode(), and replace none of "
    "them afterwards"
)
COMPUTED_BEFORE = (
    "the closure returned a loss that was computed before: compute it within the closure, lambda: "
    "criterion(model(x), y), as it is asked for again at other parameters"
)
_CLOSURE = (
    "give a closure that returns the mean loss of the minibatch as a tensor: "
    "optimizer.step(lambda: criterion(model(x), y)), with samples=len(x) where minibatches are "
    "of several sizes"
)


def require_known(kind: str, own: Sequence[str], named: Iterable[str]) -> None:
    """See that there are such arguments.

    Raises:
        TypeError: there is one that is not; the line has a remedy.
    """
    for name in named:
        if name not in own:
            why = f": {_HABITS[name]}" if name in _HABITS else ""
            raise TypeError(f"{kind} takes no {name}{why} (it takes {', '.join(own)})")


def communicator(comm: Any) -> Comm:
    """The ranks that a caller names: a ``Comm``, a communicator of mpi4py, or None for all.

    Raises:
        TypeError: it is something else. ValueError: this process has no rank in it.
    """
    return comm if isinstance(comm, Comm) else Comm(comm)


def groups(given: Any, own: Sequence[str]) -> list[dict[str, Any]]:
    """Parameter groups as torch's optimizers have them, one where parameters are given alone.

    Args:
        given: parameters, or pairs of a name and one, or groups of them (dict). own: the settings
            that a group may have.

    Raises:
        TypeError, ValueError: there are none, or such that cannot be trained.
    """
    if isinstance(given, nn.Module):
        raise TypeError(f"params is a {type(given).__name__}: give module.parameters()")
    if isinstance(given, Tensor | str) or not isinstance(given, Iterable):
        what = f"params is a {type(given).__name__}"
        raise TypeError(f"{what}: give module.parameters() or a list of parameters")
    listed = list(given)
    if not any(isinstance(each, dict) for each in listed):
        listed = [{"params": listed}]
    found = [group(each, own) for each in listed]
    every = [p for each in found for p in each["params"]]
    if not any(p.requires_grad for p in every):
        why = "none of them requires a gradient" if every else "a generator is empty when used up"
        raise ValueError(f"there are no parameters to train: {why}; give module.parameters() anew")
    require_plain(every)
    return found


def group(given: Any, own: Sequence[str]) -> dict[str, Any]:
    """A parameter group, with names where it is given pairs.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(given, dict) or "params" not in given:
        raise TypeError(
            f"a parameter group is {shown(given)}: give a dict with params, and settings of its own"
        )
    require_known("a parameter group", ("params", "param_names", "name", *own), given)
    params = given["params"]
    pairs = [params] if isinstance(params, Tensor) else list(params)
    named = [each for each in pairs if isinstance(each, tuple) and len(each) == 2]
    if named and len(named) < len(pairs):
        raise TypeError("some parameters have names and some have none: give all or none")
    parameters = [p for _, p in named] if named else pairs
    for k, each in enumerate(parameters):
        if not isinstance(each, Tensor):
            raise TypeError(f"parameter {k} is a {type(each).__name__}: give module.parameters()")
        if is_lazy(each):
            raise ValueError(
                f"parameter {k} has no shape yet (a lazy layer): send a batch through the module "
                "before the optimizer is made"
            )
        if each.requires_grad and not each.is_leaf:
            raise ValueError(
                f"parameter {k} of shape {tuple(each.shape)} is computed from others: give the "
                "module's own parameters"
            )
    names = {"param_names": [name for name, _ in named]} if named else {}
    require_settings(given, own)
    return {**given, "params": parameters, **names}


def require_settings(given: dict[str, Any], own: Sequence[str]) -> None:
    """See that a parameter group's settings are such; they may be changed at any time.

    Raises:
        TypeError, ValueError: one is not.
    """
    for name in own:
        value = given.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} of a parameter group is {shown(value)}: give a number")
        least = "above" if name == "radius_scale" else "at least"
        number = float(value)
        if not 0.0 <= number < math.inf or (name in given and least == "above" and number == 0.0):
            raise ValueError(f"{name} {value} of a parameter group must be {least} 0")


def require_plain(parameters: Sequence[Tensor]) -> None:
    """See that parameters can be parts of one vector.

    Raises:
        ValueError: they cannot; the line has a remedy.
    """
    trained = [each for each in parameters if each.requires_grad]
    if len({id(each) for each in parameters}) < len(parameters):
        raise ValueError(
            "a parameter is given twice: give each once, as module.parameters() does of tied ones"
        )
    dtypes = {each.dtype for each in trained}
    if dtypes != {torch.float32}:
        others = ", ".join(sorted(map(str, dtypes - {torch.float32})))
        raise ValueError(
            f"parameters are {others}: train them in float32 (module.float()), with torch.autocast "
            "in the closure where 16 bits are wanted"
        )
    devices = sorted({str(each.device) for each in trained})
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(
            f"parameters are on {' and '.join(devices)}: move the module to one device before the "
            "optimizer is made; a rank trains on one"
        )


def minibatch(closure: Any, samples: Any) -> tuple[list[Callable[[], Tensor]], list[float], int]:
    """What a step is given: the closures of a minibatch's chunks, their weights, its samples.

    Args:
        closure: one, or several. samples: of each; None: chunks weigh alike, and so do minibatches.

    Raises:
        TypeError, ValueError: it is something else.
    """
    closures = list(closure) if isinstance(closure, list | tuple) else [closure]
    for each in closures:
        if not callable(each):
            raise TypeError(f"step is given {shown(each)}: {_CLOSURE}")
    if not closures:
        raise TypeError(f"step is given no closures: {_CLOSURE}")
    if samples is None:
        return closures, [1.0 / len(closures)] * len(closures), 1
    given = list(samples) if isinstance(samples, list | tuple) else [samples]
    counts = [count(each) for each in given]
    if len(counts) != len(closures):
        raise ValueError(
            f"samples has {len(counts)} numbers for {len(closures)} closures: give one for each"
        )
    both = [(each, number) for each, number in zip(closures, counts, strict=True) if number]
    total = sum(counts)
    return [each for each, _ in both], [number / total for _, number in both], total


def require_one_per_subdomain(draws: Sequence[Any], subdomains: Sequence[Any]) -> None:
    """See that there is a function that draws batches for each subdomain of the rank.

    Raises:
        ValueError: there is not.
    """
    if len(draws) != len(subdomains):
        raise ValueError(f"batches of {len(draws)} subdomains, not {len(subdomains)}")


@contextmanager
def loading_state() -> Iterator[None]:
    """Within, a saved state is taken up.

    Raises:
        ValueError: it lacks something.
    """
    try:
        yield
    except KeyError as error:
        what = f"the state lacks {error}: it is another optimizer's, or not whole"
        raise ValueError(what) from error


def count(
    given: Any, what: str = "samples", of: str = "samples that the loss is the mean of"
) -> int:
    """A number of samples, or of something else that is counted.

    Raises:
        TypeError: it is no whole number. ValueError: it is negative.
    """
    try:
        number = operator.index(given)
    except TypeError:
        raise TypeError(
            f"{what} is {shown(given)}: give the number of {of}, a whole number"
        ) from None
    if number < 0:
        raise ValueError(f"{what} {number} is negative")
    return number


def checked_loss(loss: Any) -> Tensor:
    """The loss that a closure returned.

    Raises:
        TypeError, ValueError: it is no scalar tensor.
    """
    if not isinstance(loss, Tensor):
        how = (
            "end it with: return loss"
            if loss is None
            else "give samples to step itself: step(closure, samples=...)"
            if isinstance(loss, tuple)
            else "without .item() or float()"
        )
        raise TypeError(
            f"the closure returned {shown(loss)}: return the mean loss as a tensor, {how}"
        )
    if loss.numel() != 1 or loss.is_complex():
        raise ValueError(
            f"the closure's loss is {loss.dtype} of shape {tuple(loss.shape)}: return the mean, "
            "one real number"
        )
    return loss


def require_options(own: dict[str, Any], state: Any, *, except_for: set[str]) -> None:
    """See that a state that a caller loads is of these options, but for some of them.

    Raises:
        ValueError: it is not; the line has what it has and what it should have.
    """
    if not isinstance(state, dict) or not isinstance(state.get("options"), dict):
        raise ValueError(
            "the state is of another optimizer: load what state_dict() of the same class gave"
        )
    differing = [
        f"{name} {state['options'].get(name)}, not {value}"
        for name, value in own.items()
        if name not in except_for and state["options"].get(name) != value
    ]
    if differing:
        raise ValueError(f"the state has {'; '.join(differing)}")
