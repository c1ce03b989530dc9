"""What a kind of file is to the fuzzer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .damage import Rng

Question = Callable[[Path], str]
Forgery = Callable[[Rng, Path], None]
MARK = "CODE-HAS-RUN"  # a file that an attack leaves in the folder


@dataclass(frozen=True)
class Subject:
    """A kind of file, and what is asked of it.

    A question is a function of the folder; it returns a digest of what the program made of the
    files, or raises InputError. Asked of damaged files it must give the digest of the originals or
    refuse.

    Attributes:
        make: writes good files into an empty folder. files: patterns of those to be damaged.
        questions: by name.
        forgeries: by name, changes after which the file is sound as its format has it.
        checked: whether the format has checksums, so that no damage may go unnoticed.
        plain: what the files say, read in another way, where it has none: a damaged file is then
            another good one, but must be read as it is.
        steers: whether it tells the program what to do next, so that one that is sound but strange
            may be refused by a line about that, which does not name the file.
        pipe: whether a pipe in the file's place is to be refused, and not waited for.
    """

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    questions: Mapping[str, Question] = field(repr=False)
    forgeries: Mapping[str, Forgery] = field(default_factory=dict, repr=False)
    checked: bool = True
    plain: Question | None = None
    steers: bool = False
    pipe: bool = True


def digest(*things: Any) -> str:
    """Of arrays with type and shape, and of the text of everything else."""
    found = hashlib.sha256()
    for thing in things:
        if isinstance(thing, np.ndarray):
            found.update(f"{thing.dtype.str} {thing.shape} ".encode())
            found.update(np.ascontiguousarray(thing).tobytes())
        else:
            found.update(f"{thing!r} ".encode(errors="surrogatepass"))
    return found.hexdigest()
