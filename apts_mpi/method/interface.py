"""What a caller hands to the optimizers, checked where it comes in: a line with a remedy each."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.options import shown

_HABITS = {  # of torch's optimizers
    "param_groups": "no scheduler: there is no learning rate or other setting to change between "
    "steps; its arguments are the settings, for all parameters alike, and radius adapts itself",
    "add_param_group": "give all parameters when it is made",
    "defaults": "its arguments are the settings",
    "state": "state_dict() gives what a restart needs",
    "lr": "there is no learning rate to set, steps follow the trust region; radius is the first",
    "weight_decay": "there is none yet; add a penalty to the loss",
}
_MINIBATCH = (
    "give a function that returns (closure, samples): a closure that returns the mean loss of the "
    "next minibatch as a tensor, without backward(), and the number of its samples"
)


# So that torch's schedulers and scalers look at it, and then get a line with what there is instead.
_Optimizer: type = object if TYPE_CHECKING else torch.optim.Optimizer


class NoTorchOptimizer(_Optimizer):
    """Says what there is in place of what torch's optimizers have."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """See that there are such arguments; TypeError, with a remedy, where not."""
        own = inspect.signature(cls).parameters
        if len(arguments) > 1:
            raise TypeError(f"{cls.__name__} takes parameters alone by position; name the others")
        for name in named:
            if name not in own:
                why = f": {_HABITS[name]}" if name in _HABITS else ""
                known = ", ".join(own)
                raise TypeError(f"{cls.__name__} takes no {name}{why} (it takes {known})")
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HABITS:
            self.__getattr__(name)
        super().__setattr__(name, value)

    __repr__ = object.__repr__
    add_param_group = property(lambda self: self.__getattr__("add_param_group"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> NoReturn:
        kind = type(self).__name__
        why = f": {_HABITS[name]}" if name in _HABITS else ""
        raise AttributeError(f"{kind} has no attribute {name!r}{why}", name=name, obj=self)


def communicator(comm: Any) -> Comm:
    """The ranks that a caller names: a ``Comm``, a communicator of mpi4py, or None for all.

    Raises:
        TypeError: it is something else. ValueError: this process has no rank in it.
    """
    return comm if isinstance(comm, Comm) else Comm(comm)


def parameters(given: Any) -> list[nn.Parameter]:
    """Parameters as ``FlatParameters`` takes them.

    Raises:
        TypeError, ValueError: they are none, or such that it cannot take.
    """
    if isinstance(given, nn.Module):
        raise TypeError(f"parameters is a {type(given).__name__}: give module.parameters()")
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        what = f"parameters is a {type(given).__name__}"
        raise TypeError(f"{what}: give module.parameters() or a list of parameters")
    found = list(given)
    for k, each in enumerate(found):
        if isinstance(each, dict):
            raise TypeError(
                "parameters has groups (dict): all parameters are trained alike; give "
                "module.parameters(), or a list of those to be trained"
            )
        if isinstance(each, tuple | str):
            raise TypeError("parameters has names: give module.parameters(), not the named ones")
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
    trained = [each for each in found if each.requires_grad]
    if not trained:
        why = "none of them requires a gradient" if found else "a generator is empty when used up"
        raise ValueError(f"there are no parameters to train: {why}; give module.parameters() anew")
    if len({id(each) for each in trained}) < len(trained):
        raise ValueError(
            "a parameter is given twice: give each once, as module.parameters() does of tied ones"
        )
    _require_plain(trained)
    return found


def _require_plain(trained: Sequence[Tensor]) -> None:
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


def minibatch(
    give: Callable[[], tuple[Callable[[], Tensor], int]],
) -> tuple[Callable[[], Tensor], int]:
    """What a caller's function gives for a minibatch: its closure, and its samples.

    Raises:
        TypeError, ValueError: it gives something else.
    """
    given = give()
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(f"the function given to step returned {shown(given)}: {_MINIBATCH}")
    closure, samples = given
    if not callable(closure):
        raise TypeError(f"the closure of a minibatch is {shown(closure)}: {_MINIBATCH}")
    return closure, count(samples)


def require_functions(given: Sequence[Any], subdomains: int, *, closures: bool = False) -> None:
    """See that a step is given a function for each subdomain.

    Args:
        closures: whether they return losses, rather than minibatches.

    Raises:
        TypeError: it is not.
    """
    wanted = "give a closure that returns the mean loss as a tensor" if closures else _MINIBATCH
    for each in given:
        if not callable(each):
            raise TypeError(f"step is given {shown(each)}: {wanted}")
    if len(given) != subdomains:
        many = "" if subdomains == 1 else f", for each of this rank's {subdomains} subdomains"
        raise TypeError(f"step is given {len(given)} functions, not {subdomains}: {wanted}{many}")


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


def count(samples: Any) -> int:
    """A number of samples.

    Raises:
        TypeError: it is no whole number. ValueError: it is negative.
    """
    try:
        number = operator.index(samples)
    except TypeError:
        raise TypeError(
            f"samples is {shown(samples)}: give the number of samples that the loss is the mean "
            "of, a whole number"
        ) from None
    if number < 0:
        raise ValueError(f"samples {number} is negative")
    return number


def loss_of(closure: Callable[[], Tensor]) -> Tensor:
    """The loss that a caller's closure returns.

    Raises:
        TypeError, ValueError, RuntimeError: it is no scalar tensor, or the closure calls backward.
    """
    try:
        loss = closure()
    except RuntimeError as error:
        # Without a gradient there is nothing to go back through.
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise
        raise RuntimeError(
            "the closure must return the loss and leave backward() to the optimizer"
        ) from error
    if not isinstance(loss, Tensor):
        how = "end it with: return loss" if loss is None else "without .item() or float()"
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
