"""Settings to TOML and from it, typed and named."""

from __future__ import annotations

import json
import math
import reprlib
import sys
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.declaration import STEPS, Setting
from apts_mpi.settings.habits import meant
from apts_mpi.settings.texts import AUTO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONGEST = 2**20  # bytes of a configuration file
_HUGE = 2**63  # no number of it is as large


def to_toml(config: TrainConfig) -> str:
    """The settings as TOML, but for what is None or has no effect; read back as they are."""
    lines = []
    for name, setting in SETTINGS.items():
        value = getattr(config, name)
        if value is not None and (config.has_effect(name) or value != setting.default):
            # JSON's strings, numbers, booleans and lists of numbers are TOML's too.
            value = "auto" if setting.kind is STEPS and value == AUTO else value
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{name} = {'inf' if value == math.inf else text}")
    return "\n".join(lines) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """The settings a TOML file names, typed and ready to be overridden by flags.

    Raises:
        InputError: the file cannot be read, is not TOML, or names an unknown or mistyped setting.
    """
    try:
        with path.open("rb") as file:  # which may be a pipe
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise InputError(f"{path}: is longer than {_LONGEST} bytes: no configuration file")
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    return parse_toml(text, path)


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """As ``read_toml``, of a text; the path is what errors name."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is not valid TOML: {detail}") from None
    for name in values:
        if name not in SETTINGS:
            hint = meant(name, SETTINGS) or f"; known are {', '.join(sorted(SETTINGS))}"
            raise InputError(f"{path}: unknown setting {_shown(name)}{hint}")
    return {name: _typed(path, SETTINGS[name], value) for name, value in values.items()}


def _typed(path: Path, setting: Setting, value: Any) -> Any:
    name, kind = setting.name, setting.kind.type
    if kind is tuple:
        if isinstance(value, list) and all(type(w) is int and abs(w) < _HUGE for w in value):
            return tuple(value)
        what = "must be a list of integers, like [128, 128]"
        raise InputError(f"{path}: {name} = {_shown(value)} {what}")
    if type(value) is int and abs(value) >= _HUGE:
        raise InputError(f"{path}: {name} has too many digits")
    if kind is float and type(value) is int:
        return float(value)
    if setting.kind is STEPS and value == "auto":
        return AUTO
    if setting.kind is STEPS and value == AUTO:  # which has no number to a user
        raise InputError(f"{path}: {name} = {value} {setting.kind.must}")
    if type(value) is not kind:
        raise InputError(f"{path}: {name} = {_shown(value)} must be of type {kind.__name__}")
    return value


def _shown(value: Any) -> str:
    """A value of any kind, size and depth in some signs."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        return f"a {type(value).__name__}"
