"""Whether a function that the user names is one that makes a network for a task.

A function of a library of networks, called with a task, may take it for anything: the first
argument of many is whether to download parameters. So none is called that does not take a task.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from apts_mpi.errors import InputError
from apts_mpi.networks.task import Task

# Libraries whose functions take no task, and many of them download.
LIBRARIES = frozenset(
    (
        *("diffusers", "efficientnet_pytorch", "huggingface_hub", "keras", "monai", "open_clip"),
        *("pretrainedmodels", "pytorchcv", "segmentation_models_pytorch", "sentence_transformers"),
        *("tensorflow", "timm", "torch", "torchaudio", "torchtext", "torchvision"),
        *("transformers", "ultralytics"),
    )
)
# First parameters that say what else is wanted.
_OTHERS = frozenset(
    (
        *("checkpoint", "encoder_name", "in_channels", "in_features", "model", "model_id"),
        *("model_name", "name", "num_classes", "path", "pretrained", "progress", "repo"),
        *("repo_id", "repo_or_dir", "url", "weights"),
    )
)
# All that an annotation may be made of for certain to be no task's.
_PLAIN = frozenset(
    (
        *("None", "NoneType", "Optional", "Path", "PathLike", "Sequence", "Tensor", "Union"),
        *("bool", "bytes", "class", "dict", "float", "int", "list", "pathlib", "str", "torch"),
        *("tuple", "typing"),
    )
)


def refuse_library(name: str) -> None:
    """InputError where a name is of one of the known libraries, which is then not even imported."""
    library = name.partition(":")[0].partition(".")[0]
    if library in LIBRARIES:
        _refuse(name, library)


def refuse_other(name: str, made: Callable[..., Any], task: Task) -> None:
    """InputError where a function, which is not called, does not take a task alone."""
    inner = made.func if isinstance(made, functools.partial) else made
    home = str(getattr(inner, "__module__", None) or "")
    library = home.partition(".")[0]
    if library in LIBRARIES:  # imported into a module of the user's own
        _refuse(name, library)
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # of code in C
        return
    try:
        first = next(iter(signature.bind(task).arguments))
    except (StopIteration, TypeError) as error:
        what = f"takes {signature}, and not a task alone ({error})"
        raise InputError(f"--network {name}: {what}{_remedy(name)}") from None
    parameter = signature.parameters[first]
    annotation = parameter.annotation
    words = set() if annotation is parameter.empty else _words(annotation)
    foreign = _is_installed(home) and first != "task" and "Task" not in words
    if foreign or first in _OTHERS or (words and words <= _PLAIN):
        raise InputError(f"--network {name}: its first argument is {parameter}{_remedy(name)}")


def _refuse(name: str, library: str) -> NoReturn:
    what = f"the functions of {library} take no task, and some of them download"
    raise InputError(f"--network {name}: {what}{_remedy(name)}")


def _words(annotation: Any) -> set[str]:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return set(re.findall(r"\w+", text))


def _is_installed(module: str) -> bool:
    """Whether a module is of Python or of an installed package, and not of the user's own files."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def _remedy(name: str) -> str:
    module, _, function = name.partition(":")
    return (
        "; write a function that takes a task and calls it, and name that one: def network(task): "
        f"return {module}.{function}(..., num_classes=task.outputs) (docs/networks.md)"
    )
