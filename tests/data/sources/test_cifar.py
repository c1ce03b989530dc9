"""CIFAR-10's binary files: what is read, and how damage is told."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import load_source, read_info, read_partition
from apts_mpi.data.sources import cifar
from tests.data.helpers import DATA, refused

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six small files in the layout of the archive: 4 records each."""
    inside = tmp_path / cifar.FOLDER
    inside.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate((*cifar.TRAIN, cifar.TEST)):
        records = rng.integers(0, 256, (4, cifar.RECORD), dtype=np.uint8)
        records[:, 0] = [number, 9 - number, 0, 9]
        records.tofile(inside / name)
    (inside / cifar.NAMES).write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    return inside


def test_records_are_read_in_order(folder: Path) -> None:
    source = load_source("cifar10", path=folder)
    assert (source.x_train.shape, source.x_test.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert source.x_train.dtype == np.uint8
    assert source.classes == tuple(NAMES)
    third = (folder / "data_batch_3.bin").read_bytes()
    record = third[cifar.RECORD : 2 * cifar.RECORD]
    assert source.y_train[9] == record[0] == 7
    assert source.x_train[9].tobytes() == record[1:]
    # Green, second row, third pixel.
    assert source.x_train[9, 1, 1, 2] == record[1 + 1024 + 32 + 2]
    assert source.y_test.tolist() == [5, 4, 0, 9]


def test_the_folder_above_will_do_and_names_are_optional(folder: Path) -> None:
    (folder / cifar.NAMES).unlink()
    source = load_source("cifar10", path=folder.parent)
    assert np.array_equal(source.x_train, load_source("cifar10", path=folder).x_train)
    assert source.classes == tuple("0123456789")


def test_a_pipe_for_names_is_not_waited_for(folder: Path) -> None:
    (folder / cifar.NAMES).unlink()
    os.mkfifo(folder / cifar.NAMES)
    with refused(str(folder / cifar.NAMES), "is not a file"):
        load_source("cifar10", path=folder)


def test_shards(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["shard", "cifar10", "--from", str(folder), "--out", str(out), "--shards", "2"]
    assert main(command, Comm()) == 0
    assert "cifar10" in capsys.readouterr().out
    assert read_info(out).sample_shape == (3, 32, 32)
    parts = [read_partition(out, "train", rank, 2) for rank in range(2)]
    assert sorted(np.concatenate([part.y for part in parts])) == sorted(
        load_source("cifar10", path=folder).y_train
    )


def test_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path / "cache"))
    with refused("cifar10: no folder", "--from"):
        load_source("cifar10")
    with refused(str(tmp_path / "nowhere"), "not a folder", "--from"):
        load_source("cifar10", path=tmp_path / "nowhere")
    with refused("data_batch_1.bin", "is missing", "--from"):
        load_source("cifar10", path=tmp_path)


@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_damaged_files(folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for bad, words in {
        good[:-1]: ["12291 bytes", "3073"],
        good + b"\0": ["12293 bytes"],
        b"": ["0 bytes"],
        good[: cifar.RECORD] + b"\x0a" + good[cifar.RECORD + 1 :]: ["record 1", "label 10", "9"],
    }.items():
        path.write_bytes(bad)
        with refused(str(path), *words, "cifar-10-binary.tar.gz"):
            load_source("cifar10", path=folder)
    path.unlink()
    with refused(str(path), "is missing"):
        load_source("cifar10", path=folder)
    path.mkdir()
    with refused(str(path), "is not a file"):
        load_source("cifar10", path=folder)


def test_bad_names(folder: Path) -> None:
    path = folder / cifar.NAMES
    path.write_text("cat\ndog\n", encoding="utf-8")
    with refused(str(path), "2 classes", "remove it"):
        load_source("cifar10", path=folder)
    path.write_bytes(b"\xff\xfe\n" * 10)
    with refused(str(path), "cannot be read"):
        load_source("cifar10", path=folder)
    path.write_text("cat\n" * 10, encoding="utf-8")
    with refused("'cat' is there twice"):
        load_source("cifar10", path=folder)


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / cifar.TEST).chmod(0)
    with refused("test_batch.bin", "cannot be read"):
        load_source("cifar10", path=folder)


# --- the download ---


class Server:
    """What a server on this machine sends for every path asked for."""

    def __init__(self) -> None:
        self.content, self.claimed, self.asked = b"", 0, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(server.claimed or len(server.content)))
                self.end_headers()
                self.wfile.write(server.content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-binary.tar.gz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(cifar, "URL", served.url)
    monkeypatch.setattr(cifar, "RECORDS", 4)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


def packed(folder: Path, *more: tarfile.TarInfo, leave_out: str = "") -> bytes:
    """The folder as an archive, with its own entry and what else is asked for."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, cifar.FOLDER, recursive=False)
        for path in sorted(folder.iterdir()):
            if path.name != leave_out:
                archive.add(path, f"{cifar.FOLDER}/{path.name}")
        for member in more:
            archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return buffer.getvalue()


def trust(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(content).hexdigest())


def test_download(
    folder: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape = tarfile.TarInfo("../escaped")
    escape.size = 5
    server.content = packed(folder, escape)
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path / "cache"))
    with refused(server.url, "md5", "c32a1d4ab5d03f1284b67883e8d87530"):
        load_source("cifar10", download=True)
    assert not list((tmp_path / "cache" / "cifar10").iterdir())
    trust(monkeypatch, server.content)
    source = load_source("cifar10", download=True)
    assert np.array_equal(source.x_train, load_source("cifar10", path=folder).x_train)
    assert source.classes == tuple(NAMES)
    assert server.asked == 2
    again = load_source("cifar10", download=True)  # nothing is fetched twice
    assert np.array_equal(again.x_test, load_source("cifar10").x_test)
    assert server.asked == 2
    place = tmp_path / "cache" / "cifar10"
    assert [path.name for path in place.iterdir()] == [cifar.FOLDER]
    assert not list(tmp_path.rglob("escaped"))
    (place / cifar.FOLDER / cifar.TEST).unlink()
    with refused(cifar.FOLDER, "has no test_batch.bin", "remove the folder"):
        load_source("cifar10", download=True)


@pytest.mark.parametrize("kind", ["lacking", "twice", "link", "large", "truncated", "no archive"])
def test_archives_that_will_not_do(
    folder: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    member = tarfile.TarInfo(f"{cifar.FOLDER}/{cifar.TEST}")
    left_out, word = cifar.TEST, "is not a file of 12292 bytes"
    if kind == "lacking":
        member.name, word = "other", f"has no {cifar.FOLDER}/{cifar.TEST}"
    elif kind == "twice":
        member.size, left_out, word = 4 * cifar.RECORD, "", "twice"
    elif kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "large":
        member.size = 4 * cifar.RECORD + 1
    server.content = packed(folder, member, leave_out=left_out)
    if kind == "truncated":
        server.content, word = server.content[: len(server.content) // 2], "cannot be unpacked"
    elif kind == "no archive":
        server.content, word = b"<html>gone</html>", "cannot be unpacked"
    trust(monkeypatch, server.content)
    with refused(server.url, word):
        load_source("cifar10", path=tmp_path / "new", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_servers_that_fail(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content, server.claimed = b"a" * 100, 200
    with refused(server.url, "ended after 100 of 200 bytes"):
        load_source("cifar10", path=tmp_path, download=True)
    server.claimed = 0
    monkeypatch.setattr(cifar, "DOWNLOAD_LIMIT", 99)
    with refused(server.url, "more than 99 bytes"):
        load_source("cifar10", path=tmp_path, download=True)
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/nothing.tar.gz")
    with refused("http://127.0.0.1:9", "cannot be downloaded"):
        load_source("cifar10", path=tmp_path, download=True)
    assert not list(tmp_path.iterdir())


def test_real_cifar10() -> None:
    given = DATA / "cifar10"
    if not any((place / cifar.TEST).is_file() for place in (given, given / cifar.FOLDER)):
        pytest.skip(f"no binary CIFAR-10 in {given}; set APTS_MPI_TEST_DATA to the folder above it")
    source = load_source("cifar10", path=given)
    assert source.x_train.shape == (50000, 3, 32, 32)
    assert np.bincount(source.y_test).tolist() == [1000] * 10
