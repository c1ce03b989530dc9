"""Folders of images, a folder a class, as arrays of one size; decoded by Pillow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from apts_mpi.data.format import fault
from apts_mpi.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
LARGEST = 2**14  # pixels of a side
INSTALL = "install it with `pip install pillow` (or 'apts_mpi[images]')"
LAYOUT = "give a folder with a folder of images a class, or train and test with such"

Bytes = NDArray[np.uint8]


class Images(NamedTuple):
    """Images (n, channels, h, w), labels (n,) and class names; no test where there was no split."""

    x_train: Bytes
    y_train: NDArray[np.int64]
    x_test: Bytes | None
    y_test: NDArray[np.int64] | None
    classes: tuple[str, ...]


def read_images(folder: Path, *, size: tuple[int, int], channels: int = 3) -> Images:
    """Read `folder`/CLASS/*.png and the like, or `folder`/train/CLASS and `folder`/test/CLASS.

    Classes are in the order of their names, and so are the images of a class. Of an animation the
    first picture is taken. An image is turned as its EXIF data say, made RGB or grey (transparent
    parts black), scaled by one factor for both sides so that it just covers the size, with Pillow's
    bilinear filter, which averages as it reduces, and cut to the size about its centre.

    Args:
        size: rows and columns. channels: 3 for colour, 1 for grey.

    Raises:
        InputError: Pillow is missing, an image is damaged or huge, or the layout another one.
    """
    if channels not in MODES:
        raise InputError(f"--channels {channels}: give 1 or 3")
    if min(size) < 1 or max(size) > LARGEST:
        raise InputError(f"--size {size[0]},{size[1]}: give sides of 1 to {LARGEST} pixels")
    _pillow()
    if not folder.is_dir():
        raise fault(folder, "is not a folder", LAYOUT)
    train, test = folder / "train", folder / "test"
    split = train.is_dir() and test.is_dir()
    where = train if split else folder
    classes = _classes(where)
    if len(classes) < 2:
        raise fault(where, f"has {len(classes)} class folders", LAYOUT)
    parts: list[Any] = []
    for place in (train, test) if split else (folder,):
        if place == test and (more := sorted(set(_classes(test)) - set(classes))):
            raise fault(
                test, f"has class {more[0]!r}, which is not in train", "remove or rename it"
            )
        files = [(path, k) for k, name in enumerate(classes) for path in _files(place / name)]
        if files and place == where and (empty := set(range(len(classes))) - {k for _, k in files}):
            what = f"has no images ({', '.join(SUFFIXES)})"
            raise fault(place / classes[min(empty)], what, "add some, or remove the folder")
        if not files:
            raise fault(place, "has no images", LAYOUT)
        x = np.empty((len(files), channels, *size), dtype=np.uint8)
        bar = tqdm(files, desc=f"reading {place.name}", unit="image", disable=None, leave=False)
        for out, (path, _) in zip(x, bar, strict=True):
            out[...] = _decoded(path, size, MODES[channels])
        parts += [x, np.array([label for _, label in files], dtype=np.int64)]
    x, y, x_test, y_test = parts if split else (*parts, None, None)
    return Images(x, y, x_test, y_test, classes)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InputError(f"imagefolder: Pillow is not there to decode images; {INSTALL}") from None
    return Image


def _classes(folder: Path) -> tuple[str, ...]:
    found = (each.name for each in folder.iterdir() if each.is_dir())
    return tuple(sorted(name for name in found if name[0] != "."))


def _files(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():  # a class that has no images for the test
        return []
    found = (each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)
    return sorted(each for each in found if each.name[0] != "." and each.is_file())


def _decoded(path: Path, size: tuple[int, int], mode: str) -> Bytes:
    """An image as (channels, h, w)."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of what may be made to fill memory, and refuses only twice that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
        if image.mode not in ("L", "RGB"):
            image = _plain(image)
        return _fitted(image.convert(mode), size)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as exc:
        what = f"is too large ({' '.join(str(exc).split())})"
        raise fault(path, what, "reduce it, or leave it out") from exc
    # Decoders of damaged images raise nearly anything.
    except Exception as exc:
        detail = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise fault(path, f"cannot be decoded ({detail})", "mend it, or leave it out") from exc


def _plain(image: Any) -> Any:
    """Without palette, transparency, or more than 8 bits a value."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"has values of mode {image.mode}; save it with 8 bits a channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return image.convert("RGB") if image.mode != "1" else image.convert("L")


def _fitted(image: Any, size: tuple[int, int]) -> Bytes:
    from PIL import Image

    (h, w), (wide, high) = size, image.size
    factor = max(h / high, w / wide)
    # The part of the image that has the shape asked for, about its centre.
    used_w, used_h = min(w / factor, wide), min(h / factor, high)
    left, top = (wide - used_w) / 2, (high - used_h) / 2
    box = (left, top, left + used_w, top + used_h)
    if (wide, high) != (w, h):
        image = image.resize((w, h), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, dtype=np.uint8)
    assert math.prod(pixels.shape[:2]) == h * w, "fitted"
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
