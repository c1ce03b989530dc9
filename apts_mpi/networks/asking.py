"""Whether a function that the user names is one that makes a network for a task.

A function of a library of networks, called with a task, may take it for anything: the first
argument of many is whether to download parameters. So the task is only given to a parameter called
``task``, and a function without one is not called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from apts_mpi.errors import InputError, did_you_mean

# Libraries whose functions take no task, and many of them download.
LIBRARIES = frozenset(
    (
        *("diffusers", "efficientnet_pytorch", "huggingface_hub", "keras", "monai", "open_clip"),
        *("pretrainedmodels", "pytorchcv", "segmentation_models_pytorch", "sentence_transformers"),
        *("tensorflow", "timm", "torch", "torchaudio", "torchtext", "torchvision"),
        *("transformers", "ultralytics"),
    )
)


def refuse_library(name: str) -> None:
    """InputError where a name is of one of the known libraries, which is then not even imported."""
    library = name.partition(":")[0].partition(".")[0]
    if library in LIBRARIES:
        _refuse(name, library)


def refuse_other(name: str, made: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """InputError where a function, which is not called, does not take a task and the arguments."""
    inner = made.func if isinstance(made, functools.partial) else made
    library = str(getattr(inner, "__module__", None) or "").partition(".")[0]
    if library in LIBRARIES:  # imported into a module of the user's own
        _refuse(name, library)
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # of code in C
        raise InputError(f"--network {name}: hides its parameters{_remedy(name)}") from None
    known = [each for each in signature.parameters.values() if each.kind not in _GATHERING]
    if not any(each.name == "task" and each.kind in _NAMED for each in known):
        raise InputError(f"--network {name}: takes {signature}, no `task`{_remedy(name)}")
    gathers = inspect.Parameter.VAR_KEYWORD in {e.kind for e in signature.parameters.values()}
    names = [each.name for each in known if each.name != "task" and each.kind in _NAMED]
    for given in arguments:
        if given == "task" or (given not in names and not gathers):
            takes = f"it takes {', '.join(names) or 'none besides the task'}"
            what = f"{name} has no argument {given}{did_you_mean(given, names)}; {takes}"
            raise InputError(f"--network-args {given}: {what}")
    try:
        signature.bind(task=None, **arguments)
    except TypeError as error:
        raise InputError(
            f"--network {name}: takes {signature} ({error}); give what it needs: "
            "--network-args NAME=VALUE,..."
        ) from None


_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _refuse(name: str, library: str) -> NoReturn:
    what = f"the functions of {library} take no task, and some of them download"
    raise InputError(f"--network {name}: {what}{_remedy(name)}")


def _remedy(name: str) -> str:
    module, _, function = name.partition(":")
    zoo = module.partition(".")[0]
    named = f"; name it {zoo}:NAME, or" if zoo in ("timm", "torchvision") else ";"
    return (
        f"{named} write a function that takes a task and calls it, and name that one: def "
        f"network(task): return {module}.{function}(..., num_classes=task.outputs) "
        "(docs/networks.md)"
    )
