"""Texts: their tokens, the shards, and the windows that ranks read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import (
    TextSource,
    describe,
    load_source,
    load_text,
    read_info,
    read_partition,
    windowed,
    write_shards,
)
from apts_mpi.data.shards import index as layout
from apts_mpi.data.sources import tokens as stored
from apts_mpi.data.sources.text import decode
from apts_mpi.errors import InputError
from tests.data.sources.test_sources import DATA, refused

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


# --- tokens ---


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
    with refused("--level word", "char, byte"):
        load_text(path, level="word")


# --- shards ---


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("sizes", [None, [5.0, 1.0, 2.0]])
def test_shards_are_pieces_in_order(tmp_path: Path, wide: bool, sizes: Any) -> None:
    source = written(wide=wide)
    info = write_shards(source, tmp_path / "d", shards=3, sizes=sizes)
    assert (info.task, info.format_version, info.outputs) == ("language", 2, 700 if wide else 8)
    for split, tokens in (("train", source.train), ("test", source.test)):
        pieces = []
        for shard in range(3):
            with h5py.File(tmp_path / "d" / info.filename(split, shard)) as file:
                assert file["tokens"].fletcher32
                pieces.append(file["tokens"][:])
        assert tuple(map(len, pieces)) == info.splits[split].sizes
        assert np.array_equal(np.concatenate(pieces), tokens)
        with h5py.File(tmp_path / "d" / "index.h5") as file:
            assert np.array_equal(file[f"{split}/tokens"][:], tokens)
    assert read_info(tmp_path / "d") == info
    expected = (125, 25, 50) if sizes else (67, 67, 66)
    assert info.splits["train"].sizes == expected


def test_what_is_not_for_texts(tmp_path: Path) -> None:
    for options, words in (
        ({"shards": 34}, ["66 tokens", "between 1 and 33"]),
        ({"shards": 2, "stratified": True}, ["--stratified", "poem.txt"]),
        ({"shards": 2, "dirichlet": 1.0}, ["--dirichlet", "poem.txt"]),
    ):
        with refused(*words):
            write_shards(written(), tmp_path / "d", **options)
    write_shards(written(), tmp_path / "d", shards=33)
    assert min(read_info(tmp_path / "d").splits["test"].sizes) == 2


def test_shards_of_classes_are_as_they_were(tmp_path: Path) -> None:
    info = write_shards(load_source("digits"), tmp_path / "d", shards=3)
    assert info.digest == "10311f8b06f2b040ece9a0e88deac8b8734ea43eb1ff12c796d695c7f1c615b4"
    assert (info.format_version, info.outputs) == (1, 10)


def test_inspect(tmp_path: Path) -> None:
    source = written()
    write_shards(source, tmp_path / "d", shards=2)
    lines = describe(tmp_path / "d").splitlines()
    assert "tokens         200 train, 66 test, in 2 shards" in lines
    assert "vocabulary     8: t0, t1, t2, t3, t4, t5, t6, t7" in lines
    row = next(line.split() for line in lines if "train-00001" in line)
    counts = np.bincount(source.train[100:], minlength=8)
    assert list(map(int, row[1:3])) == [100, 100]
    assert list(map(int, row[4:])) == counts.tolist()
    write_shards(written(wide=True), tmp_path / "wide", shards=2)
    row = next(
        line.split() for line in describe(tmp_path / "wide").splitlines() if "train-00001" in line
    )
    assert int(row[4]) == len(np.unique(written(wide=True).train[100:]))


# --- windows ---


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(30, 200),
    shards=st.integers(1, 4),
    ranks=st.integers(1, 5),
    context=st.integers(1, 12),
    chunk=st.sampled_from([7, 10**6]),
)
def test_ranks_read_the_windows_of_every_shard(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    shards: int,
    ranks: int,
    context: int,
    chunk: int,
) -> None:
    from apts_mpi.data.shards import writing

    source, directory = written(tokens), tmp_path_factory.mktemp("windows") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK", chunk)
        info = write_shards(source, directory, shards=shards)
    for split, text in (("train", source.train), ("test", source.test)):
        table, expected = info.splits[split], []
        for start, size in zip(table.starts[:-1], table.sizes, strict=True):
            piece = text[start : start + size].tolist()
            begins = range(0, size - context, context)
            expected += [piece[at : at + context + 1] for at in begins]
        if not expected or (split == "train" and min(table.sizes) <= context):
            with refused(str(directory), f"context of {context} tokens is longer"):
                read_partition(directory, split, 0, ranks, context=context)
            return
        try:
            shown = windowed(info, context)
        except InputError:  # the test text is too short
            return
        if split == "train" and ranks > len(expected):
            with refused(f"{ranks} ranks for {len(expected)} training windows"):
                read_partition(directory, split, 0, ranks, context=context)
            return
        parts = [read_partition(directory, split, rank, ranks, context) for rank in range(ranks)]
        assert np.concatenate([part.x for part in parts]).tolist() == [w[:-1] for w in expected]
        assert np.concatenate([part.y for part in parts]).tolist() == [w[1:] for w in expected]
        assert parts[0].total == shown.splits[split].total == len(expected)
        assert [part.start for part in parts] == np.cumsum([0, *map(lambda p: len(p.x), parts)])[
            :-1
        ].tolist()
        if ranks == shards:
            assert tuple(len(part.x) for part in parts) == shown.splits[split].sizes
        assert parts[0].x.base is parts[0].y.base is not None


def test_windows_are_samples(tmp_path: Path) -> None:
    info = write_shards(written(), tmp_path / "d", shards=2)
    shown = windowed(read_info(tmp_path / "d"), 9)
    assert (shown.sample_shape, shown.samples, shown.test_samples) == ((9,), 22, 6)
    assert shown.outputs == info.outputs
    assert len({shown.digest, info.digest, windowed(info, 8).digest}) == 3
    for call in (lambda: windowed(shown, 3), lambda: windowed(info, 0)):
        with pytest.raises(ValueError, match=r"windows to be cut|context of 0"):
            call()
    with refused("poem", "context of 100", "train text (100 tokens", "--context"):
        windowed(info, 100)
    with refused("poem", "context of 33", "test text (33 tokens"):
        windowed(info, 33)
    with pytest.raises(ValueError, match="context of None"):
        read_partition(tmp_path / "d", "train", 0, 1)
    write_shards(load_source("digits"), tmp_path / "digits", shards=1)
    with pytest.raises(ValueError, match="context of 3"):
        read_partition(tmp_path / "digits", "train", 0, 1, context=3)


def test_damage_is_noticed(tmp_path: Path) -> None:
    write_shards(written(), tmp_path / "d", shards=2)
    path = tmp_path / "d" / "train-00000-of-00002.h5"
    with h5py.File(path, "r+") as file:
        place = file["tokens"].id.get_chunk_info(0).byte_offset
        file["tokens"][3] = 99
    with refused(path.name, "token 99 is not in 0..7"):
        describe(tmp_path / "d")
    with refused(path.name, "is damaged (tokens[0] to tokens[99])"):
        read_partition(tmp_path / "d", "train", 0, 5, 5)
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\0" * 8)
    with refused(path.name, "is damaged"):
        read_partition(tmp_path / "d", "train", 0, 2, 5)


def test_an_index_of_something_else(tmp_path: Path) -> None:
    write_shards(written(), tmp_path / "d", shards=2)
    for name, value, word in (
        ("dtype", "<f4", "dtype '<f4' is not one of"),
        ("shards", 0, "shards 0"),
        ("task", "classification", "format version 2 is not 1"),
    ):
        path = tmp_path / "d" / "index.h5"
        with h5py.File(path, "r+") as file:
            good = file.attrs[name]
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        layout.seal(path)
        with refused("index.h5", word):
            read_info(tmp_path / "d")
        with h5py.File(path, "r+") as file:
            file.attrs[name] = good
        layout.seal(path)


# --- the command ---


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path / "own.txt", "abcd" * 25)
    command = ["shard", "text", "--from", str(path), "--out", str(tmp_path / "d"), "--shards", "2"]
    assert main(command, Comm()) == 0
    assert "tokens         90 train, 10 test" in capsys.readouterr().out
    command[5] = str(tmp_path / "bytes")
    assert main([*command, "--level", "byte", "--test-fraction", "0.5"], Comm()) == 0
    assert "vocabulary     256: 0x00, 0x01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["text"], "--from"),
        (["text", "--from", "x", "--download"], "--download"),
        (["digits", "--level", "byte"], "--level"),
    ],
)
def test_misuse(tmp_path: Path, words: list[str], told: str) -> None:
    command = ["shard", *words, "--out", str(tmp_path / "d"), "--shards", "2"]
    with pytest.raises(Exception, match=told):
        main(command, Comm())


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
