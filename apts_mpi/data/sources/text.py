"""Text as tokens: characters or bytes, and the names that a vocabulary has in the index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from apts_mpi.data.sources.checks import check_names
from apts_mpi.data.sources.source import TextSource, Tokens
from apts_mpi.data.sources.tokens import read_tokens
from apts_mpi.errors import InputError, either, fault

LEVELS = ("char", "byte")
TEST_FRACTION = 0.1


def load_text(
    path: Path,
    *,
    level: str = "char",
    test_fraction: float | None = None,
    val_fraction: float | None = None,
) -> TextSource:
    """Read a text file, or the *.txt files of a folder in the order of their names.

    The files of a folder are joined by a newline. Of characters the vocabulary is the sorted
    distinct ones of the whole text, which must be UTF-8; of bytes it is all 256. The last
    `test_fraction` of the tokens (default 0.1), rounded up, are the test, and the last
    `val_fraction` of those before them, if given, the validation. Raises InputError.
    """
    if level not in LEVELS:
        raise InputError(f"--level {level}: choose {either(LEVELS)}")
    fraction = TEST_FRACTION if test_fraction is None else test_fraction
    if not 0 < fraction < 1:
        raise InputError(f"--test-fraction {fraction}: give a test fraction between 0 and 1")
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise InputError(f"--val-fraction {val_fraction}: give a number between 0 and 1")
    tokens, known = read_tokens(_files(path), characters=level == "char")
    if level == "byte":
        classes = tuple(f"0x{byte:02X}" for byte in range(256))
    else:
        classes = tuple(_name(chr(code)) for code in known)
        if len(classes) < 2:
            what = "is empty" if not classes else f"has one distinct character, {classes[0]}"
            raise fault(path, what, "give a text of two or more")
    tests = math.ceil(fraction * len(tokens))
    if min(tests, len(tokens) - tests) < 2:
        raise fault(
            path,
            f"has {len(tokens)} tokens, {tests} of them for the test",
            "training and test take two or more each; give more text or another --test-fraction",
        )
    check_names(path, path.stem, classes)
    train, test = tokens[: len(tokens) - tests], tokens[len(tokens) - tests :]
    val = None
    if val_fraction is not None:
        many = math.ceil(val_fraction * len(train))
        if min(many, len(train) - many) < 2:
            raise fault(
                path,
                f"has {len(train)} tokens before the test, {many} of them for the validation",
                "training and validation take two or more each; give more text or another "
                "--val-fraction",
            )
        train, val = train[: len(train) - many], train[len(train) - many :]
    return TextSource(path.stem, train, test, classes, origin=str(path), val=val)


def decode(tokens: Tokens, classes: Sequence[str]) -> str:
    """The text of tokens (n,), by the names of their vocabulary; bytes that are no UTF-8 as U+FFFD.

    Raises:
        ValueError: a name is not one of a character or a byte.
    """
    if all(len(name) == 4 and name.startswith("0x") for name in classes):
        values = bytes(int(name, 16) for name in classes)
        return bytes(values[token] for token in tokens).decode(errors="replace")
    letters = [
        name if len(name) == 1 else chr(int(name.removeprefix("U+"), 16)) for name in classes
    ]
    return "".join(letters[token] for token in tokens)


def _name(character: str) -> str:
    plain = character.isprintable() and not character.isspace()
    return character if plain else f"U+{ord(character):04X}"


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(each for each in path.glob("*.txt") if each.is_file())
        if not found:
            raise fault(
                path, "has no *.txt files", "name a text file or a folder of such with --from"
            )
        return found
    if not path.is_file():
        raise fault(path, "is no file", "name a text file or a folder of *.txt files with --from")
    return [path]
