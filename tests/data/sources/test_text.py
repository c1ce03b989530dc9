"""Texts as tokens: characters, bytes, folders, validation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import (
    TextSource,
    describe,
    load_text,
    read_info,
    read_partition,
    write_shards,
)
from apts_mpi.data.sources import tokens as stored
from apts_mpi.data.sources.text import decode
from tests.data.helpers import DATA, refused

ALPHABET = tuple("abcdefgh")


def written(tokens: int = 200, *, wide: bool = False) -> TextSource:
    """Random tokens, a third as many for the test."""
    rng = np.random.default_rng(0)
    words = tuple(f"t{k}" for k in range(700 if wide else 8))
    text = rng.integers(0, len(words), tokens + tokens // 3).astype("<i4" if wide else np.uint8)
    return TextSource("poem", text[:tokens], text[tokens:], words, origin="poem.txt")


def file_of(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_characters_are_numbered_in_their_order(tmp_path: Path) -> None:
    text = "to be, or\nnot\tto be — ünd 𝄞\r\n" * 2
    source = load_text(file_of(tmp_path / "hamlet.txt", text))
    assert source.name == "hamlet"
    letters = sorted(set(text))
    tokens = np.concatenate([source.train, source.test])
    assert tokens.dtype == np.uint8
    assert [letters[token] for token in tokens] == list(text)
    assert len(source.test) == 6  # a tenth, rounded up
    assert source.classes[:4] == ("U+0009", "U+000A", "U+000D", "U+0020")
    assert source.classes[-2:] == ("—", "𝄞")
    assert decode(tokens, source.classes) == text


def test_bytes_are_their_own_numbers(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes(bytes(range(256)) * 2)
    source = load_text(path, level="byte", test_fraction=0.5)
    assert np.asarray(source.train).tobytes() == bytes(range(256))
    assert np.asarray(source.test).tobytes() == bytes(range(256))
    assert source.classes[10] == "0x0A"
    assert len(source.classes) == 256
    assert decode(np.frombuffer("dös".encode(), np.uint8), source.classes) == "dös"
    with refused(str(path), "not UTF-8", "byte 128", "--level byte"):
        load_text(path)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), min_size=40), piece=st.integers(4, 60))
def test_a_text_comes_back_from_its_tokens(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece: int
) -> None:
    """However it is cut into pieces, of which a character may go over the end."""
    assume(len(set(text)) > 1 and text[0] != "\ufeff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PIECE", piece)
        source = load_text(file_of(tmp_path_factory.mktemp("text") / "own.txt", text))
    whole = np.concatenate([source.train, source.test])
    assert decode(whole, source.classes) == text
    assert len(set(source.classes)) == len(source.classes) == len(set(text))
    assert all(name.isprintable() and name for name in source.classes)
    assert np.array_equal(source.train[3:30][2:9], whole[5:12])


def test_large_vocabularies(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 2
    source = load_text(file_of(tmp_path / "signs.txt", text))
    assert source.train.dtype == np.int32
    info = write_shards(source, tmp_path / "d", shards=2)
    assert read_info(tmp_path / "d") == info
    part = read_partition(tmp_path / "d", "train", 0, 1, context=5)
    assert part.x.dtype == part.y.dtype == np.int32
    assert decode(part.x[0], info.classes) == text[:5]


def test_the_files_of_a_folder_are_joined(tmp_path: Path) -> None:
    for name, text in {"b.txt": "bb", "a.txt": "aa\n", "c.md": "no", "c.txt": "cc"}.items():
        file_of(tmp_path / name, text)
    for level in ("char", "byte"):
        source = load_text(tmp_path, level=level, test_fraction=0.3)
        tokens = np.concatenate([source.train, source.test])
        assert decode(tokens, source.classes) == "aa\n\nbb\ncc"


def test_the_mark_before_utf_8_is_no_character(tmp_path: Path) -> None:
    for k, text in enumerate(("hello", "héllo", "")):
        (tmp_path / f"{k}.txt").write_bytes(text.encode("utf-8-sig"))
    source = load_text(tmp_path, test_fraction=0.5)
    whole = np.concatenate([source.train, source.test])
    assert decode(whole, source.classes) == "hello\nhéllo\n"
    one = load_text(tmp_path / "0.txt", level="byte", test_fraction=0.5)
    assert bytes(np.concatenate([one.train, one.test]).tolist()) == "hello".encode("utf-8-sig")
    (tmp_path / "inner.txt").write_bytes("a\ufeffb".encode() * 4)
    assert "U+FEFF" in load_text(tmp_path / "inner.txt").classes


def test_validation_is_the_end_before_the_test(tmp_path: Path) -> None:
    path = file_of(tmp_path / "poem.txt", "abcdefghij" * 10)
    source = load_text(path, test_fraction=0.2, val_fraction=0.1)
    assert source.val is not None
    parts = (source.train, source.val, source.test)
    assert [len(each) for each in parts] == [72, 8, 20]
    assert decode(np.concatenate(parts), source.classes) == "abcdefghij" * 10
    info = write_shards(source, tmp_path / "d", shards=2)
    assert read_info(tmp_path / "d") == info
    assert "72 train, 8 val, 20 test, in 2 shards" in describe(tmp_path / "d")
    windows = read_partition(tmp_path / "d", "val", 0, 1, context=3)
    assert [decode(x, info.classes) for x in windows.x] == ["cde", "ghi"]
    with refused("no validation split"):
        write_shards(load_text(path), tmp_path / "e", shards=2)
        read_partition(tmp_path / "e", "val", 0, 1, context=3)
    with refused(str(path), "80 tokens before the test, 1 of them", "--val-fraction"):
        load_text(path, test_fraction=0.2, val_fraction=0.01)
    with refused("--val-fraction 1.5"):
        load_text(path, val_fraction=1.5)
    with refused("--normalize one", "is a text"):
        write_shards(source, tmp_path / "f", shards=2, normalize="one")


def test_a_level_that_is_none_is_refused(tmp_path: Path) -> None:
    with refused("--level word: choose char or byte"):
        load_text(tmp_path, level="word")


def test_texts_that_will_not_do(tmp_path: Path) -> None:
    with refused("nowhere", "--from"):
        load_text(tmp_path / "nowhere")
    with refused(str(tmp_path), "no *.txt"):
        load_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    with refused("pipe", "no file"):
        load_text(tmp_path / "pipe")
    path = tmp_path / "own.txt"
    for text, word in {"": "empty", "aaaa": "one distinct", "ab": "2 tokens, 1 of them"}.items():
        with refused(str(path), word):
            load_text(file_of(path, text))
    file_of(path, "abcdefgh")
    for fraction in (0.0, 1.0, float("nan")):
        with refused("test fraction"):
            load_text(path, test_fraction=fraction)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path / "own.txt", "abcd" * 25)
    command = ["shard", "text", "--from", str(path), "--out", str(tmp_path / "d"), "--shards", "2"]
    assert main(command, Comm()) == 0
    assert "tokens         90 train, 10 test" in capsys.readouterr().out
    command[5] = str(tmp_path / "bytes")
    assert main([*command, "--level", "byte", "--test-fraction", "0.5"], Comm()) == 0
    assert "vocabulary     256: 0x00, 0x01" in capsys.readouterr().out


def test_real_text(tmp_path: Path) -> None:
    path = DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"no {path}; set APTS_MPI_TEST_DATA to a folder that has it")
    text = path.read_text(encoding="utf-8")
    info = write_shards(load_text(path), tmp_path / "d", shards=4)
    assert len(info.classes) == 65
    parts = [read_partition(tmp_path / "d", "train", rank, 4, context=64) for rank in range(4)]
    assert decode(parts[0].x.ravel(), info.classes) == text[: parts[0].x.size]
    assert decode(parts[3].y[0], info.classes) == text[info.splits["train"].starts[3] + 1 :][:64]
