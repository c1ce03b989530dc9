"""What the text of a flag says: widths, steps, weights, intervals and arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

AUTO = -1  # local steps that the program measures before it trains
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


def given(read: Callable[[str], Any]) -> Callable[[str], bool]:
    """Whether a text is one that ``read`` makes something of."""

    def holds(words: str) -> bool:
        try:
            return bool(read(words))
        except ValueError:
            return False

    return holds
