"""Folders of images: layout, the fixed rule by which they become one size, and bad files."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import load_source, read_info
from apts_mpi.data.sources.images import read_images
from tests.data.helpers import refused
from tests.data.sources.pictures import Image, picture, read, save, tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five images of 6 by 8."""
    for name in ("cat", "ant"):
        for k in range(5):
            save(tmp_path / "images" / name / f"{k}.png", picture())
    return tmp_path / "images"


def test_images_of_the_size_are_taken_as_they_are(folder: Path) -> None:
    found = read_images(folder, size=(6, 8))
    assert found.classes == ("ant", "cat")
    assert found.y["train"].tolist() == [0] * 5 + [1] * 5
    assert list(found.x) == ["train"]
    images = np.asarray(found.x["train"])
    for k, (name, number) in enumerate((n, i) for n in ("ant", "cat") for i in range(5)):
        pixels = np.asarray(Image.open(folder / name / f"{number}.png"))
        assert np.array_equal(images[k], pixels.transpose(2, 0, 1))


def test_what_is_no_image_is_left_out(folder: Path) -> None:
    (folder / "notes.txt").write_text("about them")
    (folder / "ant" / "notes.txt").write_text("about ants")
    (folder / "ant" / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    save(folder / "__MACOSX" / "ant" / "0.png", picture())
    save(folder / "ant" / "__MACOSX" / "0.png", picture())
    save(folder / "ant" / "Z.JPG", picture(), quality=95)
    os.mkfifo(folder / "ant" / "pipe.png")
    assert len(read(folder, 6, 8)) == 11


def reduced(pixels: np.ndarray, size: int) -> np.ndarray:
    """Along the first axis, by a triangle as wide as two steps of the result; rounded."""
    scale = max(len(pixels) / size, 1.0)
    places = np.arange(len(pixels)) + 0.5
    rows = []
    for k in range(size):
        centre = (k + 0.5) * len(pixels) / size
        weights = np.maximum(1 - np.abs(places - centre) / scale, 0)
        rows.append(np.tensordot(weights / weights.sum(), pixels.astype(float), axes=1))
    return np.rint(rows)


@pytest.mark.parametrize(("h", "w"), [(3, 4), (12, 16), (4, 4), (6, 2), (5, 8), (9, 3)])
def test_other_sizes_cover_and_are_cut(tmp_path: Path, h: int, w: int) -> None:
    """Sides of 12 and 16 scaled so that one fits; of the other its middle."""
    pixels = picture(12, 16)
    for name in "ab":
        save(tmp_path / name / "one.png", pixels)
    found = read(tmp_path, h, w)[0]
    assert found.shape == (3, h, w)
    factor = max(h / 12, w / 16)
    high, wide = round(h / factor, 9), round(w / factor, 9)
    if high % 1 or wide % 1 or (12 - high) % 2 or (16 - wide) % 2:
        return  # cut within a pixel
    top, left = int(12 - high) // 2, int(16 - wide) // 2
    part = pixels[top : top + int(high), left : left + int(wide)]
    across = reduced(part.transpose(1, 0, 2), w).transpose(1, 0, 2)
    expected = reduced(across, h).transpose(2, 0, 1)
    # At the edges of what is cut the filter sees what lies beyond.
    inner = np.s_[:, 1:-1, 1:-1] if (top or left) else np.s_[:]
    assert np.abs(found[inner] - expected[inner]).max(initial=0) <= 1


def test_grey_colour_and_what_else_there_is(tmp_path: Path) -> None:
    grey, alpha = picture(channels=1), picture(channels=4)
    save(tmp_path / "a" / "grey.png", grey)
    save(tmp_path / "a" / "transparent.png", alpha)
    (tmp_path / "b").mkdir()
    Image.fromarray(picture()).convert("P").save(tmp_path / "b" / "palette.gif")
    Image.fromarray(grey > 99).save(tmp_path / "b" / "two.png")
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "b" / "print.jpg")
    colour = read(tmp_path, 6, 8)
    assert np.array_equal(colour[0], np.stack([grey] * 3))
    over_black = alpha[..., :3] * (alpha[..., 3:] / 255.0)
    assert np.abs(colour[1] - over_black.transpose(2, 0, 1)).max() <= 1
    assert np.array_equal(colour[4, 0], np.where(grey > 99, 255, 0))
    one = read(tmp_path, 6, 8, channels=1)
    assert one.shape == (5, 1, 6, 8)
    assert np.array_equal(one[0, 0], grey)


def test_a_camera_held_upright(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for name in "ab":
        save(tmp_path / name / "one.png", pixels, exif=exif)
    assert np.array_equal(read(tmp_path, 6, 4)[0], np.rot90(pixels, -1).transpose(2, 0, 1))


def test_train_and_test(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("no", "yes"):
            for k in range(count):
                save(tmp_path / split / name / f"{k}.png", picture())
    source = load_source("imagefolder", path=tmp_path, size=(6, 8))
    assert (source.name, source.classes) == (tmp_path.name, ("no", "yes"))
    assert (source.y_train.tolist(), source.y_test.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    for k in range(2):
        (tmp_path / "test" / "no" / f"{k}.png").unlink()
    (tmp_path / "test" / "no").rmdir()
    assert load_source("imagefolder", path=tmp_path, size=(6, 8)).y_test.tolist() == [1, 1]
    save(tmp_path / "test" / "maybe" / "0.png", picture())
    with refused("test", "'maybe'", "not in train"):
        load_source("imagefolder", path=tmp_path, size=(6, 8))


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shard", "imagefolder", "--from", str(folder), "--out", str(tmp_path / "d")]
    assert main([*command, "--shards", "2", "--size", "4", "--channels", "1"], Comm()) == 0
    assert "images (classification, format 1)" in capsys.readouterr().out
    info = read_info(tmp_path / "d")
    assert (info.sample_shape, info.samples, info.splits["test"].total) == ((1, 4, 4), 8, 2)
    for more, word in (
        (["--size", "4,5,6"], "4,5,6"),
        (["--size", "0"], "--size 0,0"),
        ([], "--size"),
    ):
        with pytest.raises(Exception, match=word):
            main([*command, "--shards", "2", *more], Comm())


def test_layouts_that_will_not_do(tmp_path: Path) -> None:
    with refused("nowhere", "not a folder"):
        read(tmp_path / "nowhere", 2, 2)
    with refused(str(tmp_path), "0 class folders (none)"):
        read(tmp_path, 2, 2)
    with refused("1 class folders (only)"):
        read(tree(tmp_path / "one", "only"), 2, 2)
    with refused("train", "1 class folders (a)"):
        read(tree(tmp_path / "splits", "train/a", "test/a"), 2, 2)
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "splits")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with refused(str(tmp_path), "no images"):
        read(tmp_path, 2, 2)
    save(tmp_path / "a" / "0.png", picture())
    with refused(str(tmp_path / "b"), "no images", "remove the folder"):
        read(tmp_path, 2, 2)
    with refused("imagefolder", "--from"):
        load_source("imagefolder", size=(2, 2))


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def bomb(side: int) -> bytes:
    """A PNG that claims to be of that size, and has a row."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(3 * side + 1))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "kind", ["cut", "empty", "text", "turned", "bomb", "large bomb", "deep", "script"]
)
def test_images_that_are_damaged_or_huge(folder: Path, kind: str) -> None:
    path = folder / "cat" / "3.png"
    good, word = path.read_bytes(), "cannot be decoded"
    if kind == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "turned":
        path.write_bytes(good[:60] + b"\xff\xff" + good[62:])
    elif kind == "deep":
        Image.fromarray(np.full((6, 8), 70_000, np.int32)).save(path.with_suffix(".tif"))
        path, word = path.with_suffix(".tif"), "8 bits per channel"
    elif kind == "script":  # which Pillow hands to another program, where it may
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n")
    else:
        path.write_bytes(bomb(10_000 if kind == "bomb" else 60_000))
        word = "is too large"
    with refused(str(path), word):
        read(folder, 6, 8)


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with refused("Pillow", "pip install pillow"):
        read(folder, 6, 8)
