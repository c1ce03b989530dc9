"""Where a result comes from: versions, source digest, commit."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch

from apts_mpi.comm.job import library_version
from apts_mpi.version import __version__


def versions() -> dict[str, str]:
    """Versions of all that a result depends on."""
    return {
        "apts_mpi": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mpi4py": version("mpi4py"),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "mpi": library_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


@functools.cache
def facts() -> dict[str, str]:
    """Versions and the digest of the code, which all ranks must have alike."""
    return {**versions(), "code": code_digest()}


def code_digest() -> str:
    """SHA-256 of the package's own source, so that ranks that run another one are noticed."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def git_commit() -> str | None:
    """Commit of the checkout the package runs from; None elsewhere.

    Read from the files: to start a process from an MPI rank is not safe on every network.
    """
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(" " + name):
                return line.split()[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None
