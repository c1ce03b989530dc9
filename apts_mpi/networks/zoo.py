"""Networks of timm and torchvision by name: ``timm:resnet18``, ``torchvision:mobilenet_v3_small``.

Nothing is downloaded but for pretrained parameters that the user asks for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from apts_mpi.errors import InputError, did_you_mean, user_code
from apts_mpi.networks.task import Task, looks_channels_last

LIBRARIES = ("timm", "torchvision")
# Arguments that say where parameters come from, or what the task says.
_OURS = ("pretrained", "weights", "weights_backbone", "num_classes", "in_chans", "progress")
_FILES = ("checkpoint", "cache", "pretrained", "file", "url", "hub")  # parts of such names


def of_library(name: str) -> str:
    """The library that a network's name is of; empty where it is of none."""
    library, colon, _ = name.partition(":")
    return library if colon and library in LIBRARIES else ""


def build(
    name: str, task: Task, arguments: Mapping[str, Any], *, pretrained: bool = False
) -> nn.Module:
    """The network with as many outputs as the task wants.

    Args:
        name: LIBRARY:NAME. arguments: what the library's function takes besides.
        pretrained: with the library's parameters, downloaded where they are not in its cache, but
            for the last layer.

    Raises:
        InputError: there is none of that name, or none for that task.
    """
    library, _, network = name.partition(":")
    if find_spec(library) is None:
        raise InputError(
            f"--network {name}: {library} is not installed; install it with "
            f"`pip install {library}` (or 'apts_mpi[zoo]')"
        )
    for given in arguments:
        if given in _OURS or any(part in given for part in _FILES):
            raise InputError(
                f"--network-args {given}: is not for {library}'s networks here; outputs and "
                "channels follow the data, parameters are loaded with --pretrained on"
            )
    if task.kind == "language":
        raise InputError(f"--network {name}: is for images, the data are text")
    shape = task.sample_shape
    if len(shape) not in (2, 3) or looks_channels_last(shape):
        raise InputError(f"--network {name}: is for images (channels, height, width), not {shape}")
    channels = shape[0] if len(shape) == 3 else 1
    with user_code(
        f"--network {name}: {library} cannot be imported",
        f"; install the version of {library} that goes with this torch",
    ):
        importlib.import_module(library)
    _require(name, network, library)
    make = _of_timm if library == "timm" else _of_torchvision
    with user_code(f"--network {name}: cannot be made for samples {shape}"):
        module = make(network, task.outputs, channels, arguments, pretrained)
    if len(shape) == 2:
        module.register_forward_pre_hook(_with_channel)
    return module


def _with_channel(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    """(b, h, w) as (b, 1, h, w), which these networks take."""
    return arguments[0].unsqueeze(1)


def _require(name: str, network: str, library: str) -> None:
    """InputError where the library has no such network."""
    if library == "timm":
        import timm

        if timm.is_model(network.partition(".")[0]):
            return
        known, where = timm.list_models(), "timm.list_models()"
    else:
        from torchvision import models

        known, where = models.list_models(module=models), "torchvision.models.list_models()"
        if network in known:
            return
    hint = did_you_mean(network, known) or f"; see {where}"
    raise InputError(f"--network {name}: {library} has no such network{hint}")


def _of_timm(
    name: str, outputs: int, channels: int, arguments: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(
        name, pretrained=pretrained, num_classes=outputs, in_chans=channels, **arguments
    )
    return module


def _of_torchvision(
    name: str, outputs: int, channels: int, arguments: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    from torchvision import models

    if channels != 3:
        raise InputError(
            f"--network torchvision:{name}: takes 3 channels, the samples have {channels}; the "
            f"networks of timm take any: timm:{name}"
        )
    if not pretrained:
        module: nn.Module = models.get_model(name, weights=None, num_classes=outputs, **arguments)
        return module
    module = models.get_model(name, weights="DEFAULT", **arguments)
    linear = [key for key, part in module.named_modules() if type(part) is nn.Linear]
    if not linear:
        raise InputError(
            f"--network torchvision:{name}: ends with no linear layer that could be replaced; "
            f"take it from timm, or write a function of your own"
        )
    owner, _, last = linear[-1].rpartition(".")
    head: Any = module.get_submodule(linear[-1])
    setattr(module.get_submodule(owner), last, nn.Linear(head.in_features, outputs))
    return module
