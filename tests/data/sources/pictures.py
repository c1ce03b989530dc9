"""Images made for tests, files of them and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.data.sources.images import read_images

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Pixels (h, w), (h, w, 3) or (h, w, 4), uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def picture(h: int = 6, w: int = 8, channels: int = 3) -> np.ndarray:
    shape = (h, w) if channels == 1 else (h, w, channels)
    return RNG.integers(0, 256, size=shape, dtype=np.uint8)


def read(folder: Path, h: int, w: int, channels: int = 3) -> np.ndarray:
    return np.asarray(read_images(folder, size=(h, w), channels=channels).x["train"])


def tree(root: Path, *folders: str, count: int = 4) -> Path:
    for folder in folders:
        for k in range(count):
            save(root / folder / f"{k}.png", picture())
    return root
