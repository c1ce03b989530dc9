"""The files that a network's weights are exported to; their names' endings say which."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth")


def require_suffix(path: Path) -> None:
    """See that a file can be written.

    Raises:
        InputError: its ending says of no format that is known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--out {path}: {path.suffix or 'no ending'} is no format of weights; name a file that "
            "ends in .safetensors, or in .pt or .pth for torch.load"
        )


def packed(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> bytes:
    """The content of a file of that name: a plain ``state_dict``.

    Args:
        about: metadata, which safetensors has, torch's format not.
    """
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import save

        return save(tensors, metadata=about)
    import torch

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
