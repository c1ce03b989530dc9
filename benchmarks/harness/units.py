"""Numbers with units, as tables and the report show them."""

from __future__ import annotations

import numpy as np


def digits(value: float, places: int = 0) -> str:
    """Three significant digits, no exponent: ``1.72``, ``0.0341``, ``12300``.

    Args:
        places: behind the point at least.
    """
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")  # first, so that 0.9999 is 1.00
    enough = max(0, 2 - int(np.floor(np.log10(abs(rounded)))))
    return f"{value if places > enough else rounded:.{min(max(places, enough), 9)}f}"


def seconds(value: float) -> str:
    """A time in the unit that suits it: ``1.72 s``, ``7.20 µs``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if abs(value) * factor >= 0.9995:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µs"


def size(value: float) -> str:
    """Bytes in the unit that suits them, decimal: ``27.4 MB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def percent(share: float) -> str:
    """A share as a number of percent, without the sign: ``3.4``, ``0.37``."""
    value = 100 * share
    return f"{value:.2f}" if abs(value) < 0.995 else f"{value:.1f}"


def signed(share: float) -> str:
    """A change as a number of percent: ``+2.3``."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text


def times(value: float) -> str:
    """A factor: ``1.87``, ``20.7``, ``410``."""
    return digits(value)
