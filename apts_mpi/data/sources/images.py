"""Folders of images, a folder a class, as arrays of one size; decoded by Pillow."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.finding import SPLIT_WORDS
from apts_mpi.data.sources.stored import Stored, rows_of_block
from apts_mpi.errors import InputError, fault

log = logging.getLogger("apts_mpi")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
LARGEST = 2**14  # pixels of a side
INSTALL = "install it with `pip install pillow` (or 'apts_mpi[images]')"
LAYOUT = "give a folder with a folder of images per class, or train, val and test with such"

_LISTED = 8  # folders that a message lists

Bytes = NDArray[np.uint8]


class Images(NamedTuple):
    """Images (n, channels, h, w), which are read later, and labels (n,), of each split that there
    is, "train", "val", "test"; the class names; and `plain` where no folder speaks of splits."""

    x: dict[str, Stored]
    y: dict[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    plain: bool


def read_images(folder: Path, *, size: tuple[int, int], channels: int = 3) -> Images:
    """Find `folder`/CLASS/*.png and the like, or `folder`/train/CLASS and so with val and test.

    Classes are in the order of their names, and so are the images of a class; where they are not in
    its folder, but all in one folder in there, that is taken. Of an animation the first picture is
    taken. An image is turned as its EXIF data say, made RGB or grey (transparent parts black),
    scaled by one factor for both sides so that it just covers the size, with Pillow's bilinear
    filter, which averages as it reduces, and cut to the size about its centre.

    Args:
        size: rows and columns. channels: 3 for colour, 1 for grey.

    Raises:
        InputError: Pillow is missing, or the layout another one. That an image is damaged or huge
            comes up as it is read.
    """
    if min(size) < 1 or max(size) > LARGEST:
        raise InputError(f"--size {size[0]},{size[1]}: give sides of 1 to {LARGEST} pixels")
    _pillow()
    if not folder.is_dir():
        raise fault(folder, "is not a folder", LAYOUT)
    places, plain = _places(folder)
    classes = _folders(places["train"])
    if len(classes) < 2:
        found = _shown(classes)
        raise fault(places["train"], f"has {len(classes)} class folders ({found})", LAYOUT)
    x, y = {}, {}
    for split, place in places.items():
        if split != "train" and not set(_folders(place)) & set(classes):
            images = "images, but " if _images(place) else ""
            what = f"has {images}no folder of a class (it has {_shown(_folders(place))})"
            remedy = "sort its images by class, or move it away, and say --test-fraction X"
            raise fault(place, what, remedy)
        if more := sorted(set(_folders(place)) - set(classes)):
            what = f"has class {more[0]!r}, which is not in {places['train'].name}"
            raise fault(place, what, "remove or rename it")
        files = [_files(place / name) for name in classes]
        if not any(files):
            raise fault(place, "has no images", LAYOUT)
        if split == "train" and not all(files):
            what = f"has no images ({', '.join(SUFFIXES)})"
            empty = classes[[not each for each in files].index(True)]
            raise fault(place / empty, what, "add some, or remove the folder")
        y[split] = np.repeat(np.arange(len(classes)), [len(each) for each in files])
        x[split] = _stored([path for each in files for path in each], size, channels)
    return Images(x, y, classes, plain)


def _places(folder: Path) -> tuple[dict[str, Path], bool]:
    """The folder of each split, or that of all as training; and whether there are no splits."""
    names = _folders(folder)
    known = {name: _split_of(name) for name in names}
    if len(names) == 1 and not known[names[0]] and len(_folders(folder / names[0])) > 1:
        return _places(folder / names[0])  # as archives are unpacked
    places: dict[str, Path] = {}
    for split in SPLIT_WORDS:
        found = [name for name in names if known[name] == split]
        if len(found) > 1 and split not in found:
            what = f"has {found[0]} and {found[1]}, which may both be {split}"
            raise fault(folder, what, "remove or rename one")
        if found:
            places[split] = folder / (split if split in found else found[0])
    if "train" not in places or len(places) == 1 < len(names):
        return {"train": folder}, True
    used, classes = [place.name for place in places.values()], set(_folders(places["train"]))
    if "val" in places and "test" in places and not classes & set(_folders(places["test"])):
        log.warning("%s: has no class folders and is left out", places.pop("test"))
    if unused := [name for name in names if name not in used]:
        log.warning("%s: folders not used: %s", folder, _shown(unused))
    return places, False


def _split_of(name: str) -> str | None:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return next((split for split, words in SPLIT_WORDS.items() if plain in words), None)


def _stored(files: Sequence[Path], size: tuple[int, int], channels: int) -> Stored:
    shape = (len(files), channels, *size)
    step = max(1, rows_of_block(shape[1:], np.dtype(np.uint8)) // 8)  # decoding takes its time

    def read() -> Iterator[Bytes]:
        for start in range(0, len(files), step):
            block = files[start : start + step]
            yield np.stack([_decoded(path, size, MODES[channels]) for path in block])

    return Stored(shape, np.dtype(np.uint8), read)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InputError(f"imagefolder: Pillow is not there to decode images; {INSTALL}") from None
    return Image


def _folders(folder: Path) -> tuple[str, ...]:
    found = (each.name for each in folder.iterdir() if each.is_dir())
    # macOS packs files of its own beside those of an archive.
    return tuple(sorted(name for name in found if name[0] != "." and name != "__MACOSX"))


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:40] for name in names[:_LISTED]) + more or "none"


def _files(folder: Path) -> list[Path]:
    """The images of a class, in its folder or in the one folder in there that has some."""
    if not folder.is_dir():  # a class that a split has no images of
        return []
    found = _images(folder)
    inner = [each for each in (_images(folder / name) for name in _folders(folder)) if each]
    if found and inner:
        log.warning("%s: images are taken from here, not from %s", folder, inner[0][0].parent.name)
    elif len(inner) > 1:
        what = f"has no images, but {inner[0][0].parent.name} and {inner[1][0].parent.name} have"
        raise fault(folder, what, LAYOUT)
    return found or (inner[0] if inner else [])


def _images(folder: Path) -> list[Path]:
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
    """Without palette, transparency, or more than 8 bits per value."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"has values of mode {image.mode}; save it with 8 bits per channel")
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
