"""What the text of a flag says: widths, steps, weights, intervals, arguments, changes."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from typing import Any

AUTO = -1  # local steps that the program measures before it trains
OURS = ("crop", "flip")  # changes of images that need no package
_LONGEST = 1000  # characters of all changes
_INTERVAL = re.compile(r"(\d{1,9})(s?)")
_WORDS = {"on": True, "off": False, "true": True, "false": False, "none": None}
_WORDS |= {word.capitalize(): value for word, value in _WORDS.items()}


def widths(words: str) -> tuple[int, ...]:
    """The widths of 128,128; ValueError where they are none."""
    return tuple(int(width) for width in words.split(",") if width)


def steps(words: str) -> int:
    """A number of steps, ``AUTO`` for auto; ValueError where it is neither."""
    if words.strip().startswith("-"):  # as AUTO does
        raise ValueError(words)
    return AUTO if words == "auto" else int(words)


def class_weights(words: str) -> tuple[float, ...]:
    """The numbers of weights like 1,2,0.5; none where they are not weights."""
    try:
        weights = tuple(float(each) for each in words.split(","))
    except ValueError:
        return ()
    return weights if any(weights) and all(0 <= each < math.inf for each in weights) else ()


def interval(words: str) -> tuple[int | None, float | None]:
    """Iterations and seconds of an interval like 100, 600s or off (neither).

    Raises:
        ValueError: it is no interval.
    """
    parts = _INTERVAL.fullmatch(words)
    if words == "off":
        return None, None
    if parts is None or int(parts[1]) < 1:
        raise ValueError(words)
    return (None, float(parts[1])) if parts[2] else (int(parts[1]), None)


def arguments(words: str) -> dict[str, Any]:
    """The values of arguments like width=64,bias=off,act=relu by name.

    Raises:
        ValueError: they are none.
    """
    found: dict[str, Any] = {}
    for each in words.split(",") if words else ():
        name, equals, value = (part.strip() for part in each.partition("="))
        if not (equals and name.isidentifier() and value) or name in found:
            raise ValueError(each)
        found[name] = _WORDS[value] if value in _WORDS else _number_or_text(value)
    return found


def _number_or_text(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def changes(words: str) -> tuple[str, ...]:
    """The parts of crop,flip,RandomRotation(15), each once; arguments are literals.

    Raises:
        ValueError: they are none.
    """
    if len(words) > _LONGEST:
        raise ValueError("it is too long")
    try:
        found = ast.parse(f"[{words}]", mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(words) from error
    if not isinstance(found, ast.List):
        raise ValueError(words)
    for each in found.elts:
        name = each.func if isinstance(each, ast.Call) else each
        if not isinstance(name, ast.Name) or (name.id not in OURS and not name.id[0].isupper()):
            raise ValueError(words)
        if isinstance(each, ast.Call):
            if name.id in OURS or any(keyword.arg is None for keyword in each.keywords):
                raise ValueError(words)
            for value in (*each.args, *(keyword.value for keyword in each.keywords)):
                ast.literal_eval(value)  # ValueError where it is no literal
    return tuple(dict.fromkeys(map(ast.unparse, found.elts)))


def given(read: Callable[[str], Any]) -> Callable[[str], bool]:
    """Whether a text is one that ``read`` makes something of."""

    def holds(words: str) -> bool:
        try:
            return bool(read(words))
        except ValueError:
            return False

    return holds
