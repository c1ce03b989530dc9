"""What each network takes besides the task."""

from __future__ import annotations

from typing import Any

# What each network takes, and what that is where it is not given; one of the user's own takes none.
SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (128, 128)},
    "cnn": {"channels": (16, 32), "hidden": (64,)},
    "resnet": {"depth": 20, "width": 16, "normalization": "group"},
    "transformer": {"depth": 4, "width": 128, "heads": 4, "tied": False},
}
