"""The files that a network's weights are exported to; their names' endings say which."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apts_mpi.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, dtype

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


def packed(
    path: Path, state: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[bytes, list[str]]:
    """The content of a file of that name: a plain ``state_dict``; and lines on what is odd in it.

    Args:
        state: tensors, and extra state, by name. about: metadata, which safetensors has as text,
            torch's format not.
    """
    from torch import Tensor, contiguous_format

    # Copies, as the module's are parts of one vector; a tensor of several names has as many, so
    # that a strict load_state_dict finds all of them.
    tensors = {
        name: each.clone(memory_format=contiguous_format)
        for name, each in state.items()
        if isinstance(each, Tensor)
    }
    extra = {name: each for name, each in state.items() if name not in tensors}
    if path.suffix.lower() == ".safetensors":
        return _safetensors(tensors, extra, about)
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensors.get(name, each) for name, each in state.items()}, buffer)
    note = "the file has no room for mean and std: inspect, or an export to .safetensors, has them"
    return buffer.getvalue(), [note]


def _safetensors(
    tensors: dict[str, Tensor], extra: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[bytes, list[str]]:
    from safetensors.torch import save

    from apts_mpi.files.forms import as_bytes

    odd = {name: str(t.dtype)[6:] for name, t in tensors.items() if not _has_type(t.dtype)}
    entries = {**about, **extra, **({"as_bytes": odd} if odd else {})}
    text = {
        k: v if isinstance(v, str) else json.dumps(v, default=_as_list) for k, v in entries.items()
    }
    notes = []
    if odd:
        notes.append(
            f"{', '.join(odd)}: of a type that the format lacks, as bytes; "
            "tensor.clone().view(torch.TYPE)[..., 0] gives it back, TYPE in the metadata's as_bytes"
        )
    if extra:
        what = "extra state, no tensor: JSON in the metadata, tensors in it as lists"
        notes.append(f"{', '.join(extra)}: {what}")
    kept = {name: as_bytes(t) if name in odd else t for name, t in tensors.items()}
    return save(kept, metadata=text), notes


def _has_type(kind: dtype) -> bool:
    """Whether the installed safetensors has a name for it, which older ones have for fewer."""
    import torch
    from safetensors.torch import save

    try:
        save({"x": torch.empty(0, dtype=kind)})
    except Exception:  # of several kinds, by its version
        return False
    return True


def _as_list(tensor: Tensor) -> Any:
    """The numbers of a tensor that extra state holds; of complex ones both parts."""
    import torch

    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).tolist()
