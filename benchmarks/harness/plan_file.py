"""TOML of the benchmarks, every name and type in it checked."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from apts_mpi.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load(path: Path) -> dict[str, Any]:
    """The contents of the file that --config names.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config {path}: is not valid TOML: {error}") from None


def fields(kind: type, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The types of a dataclass's fields as ``typed`` takes them: [type] for a tuple of it.

    Args:
        without: fields that the file does not have.
    """
    found = {}
    for name, hint in get_type_hints(kind).items():
        if name not in without and name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
            options = [each for each in get_args(hint) if each not in (type(None), ...)]
            found[name] = [options[0]] if get_origin(hint) is tuple else (options or [hint])[0]
    return found


def typed(
    where: str, table: dict[str, Any], kinds: dict[str, Any], *, needed: Iterable[str] = ()
) -> dict[str, Any]:
    """A table's values, lists as tuples, whole numbers as floats where such are asked for.

    Args:
        where: names the table in complaints. kinds: type of every name, [type] of a list of it.
        needed: names that must be there.

    Raises:
        ValueError: the line says what is wrong.
    """
    for name in needed:
        check(name in table, f"{where}: {name} is missing")
    values = {}
    for name, value in table.items():
        check(name in kinds, f"{where}: {name!r} is not known; known are {', '.join(kinds)}")
        kind = kinds[name]
        if isinstance(kind, list):
            check(isinstance(value, list), f"{where}: {name} must be a list")
            values[name] = tuple(_value(where, name, item, kind[0]) for item in value)
        else:
            values[name] = _value(where, name, value, kind)
    return values


def _value(where: str, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    check(type(value) is kind, f"{where}: {name} = {value!r} must be of type {kind.__name__}")
    return value


def check(good: bool, text: str) -> None:
    """Raise a ``ValueError`` with this text where that is not good."""
    if not good:
        raise ValueError(text)
