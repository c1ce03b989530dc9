"""Where data sets are kept that are made on first use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from apts_mpi.data.sources.cache import in_cache
from apts_mpi.errors import InputError


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APTS_MPI_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def test_the_cache_is_under_home_or_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert in_cache("digits-2") == tmp_path / "home/.cache/apts_mpi/digits-2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "base"))
    assert in_cache("digits-2") == tmp_path / "base/apts_mpi/digits-2"
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path / "own"))
    assert in_cache("digits-2") == tmp_path / "own/digits-2"


def temporary(tmp_path: Path) -> Path:
    return tmp_path / "temporary" / f"apts_mpi-{os.getuid()}"


def test_without_a_home_that_can_be_written_it_is_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("no folder")
    assert in_cache("digits-2") == temporary(tmp_path) / "digits-2"
    assert temporary(tmp_path).stat().st_mode & 0o077 == 0, "nobody else puts something there"
    (tmp_path / "home").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert in_cache("digits-2") == temporary(tmp_path) / "digits-2"
    # What lies there is used all the same.
    (tmp_path / "home/.cache/apts_mpi/digits-2").mkdir(parents=True)
    assert in_cache("digits-2") == tmp_path / "home/.cache/apts_mpi/digits-2"

    def nameless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", nameless)
    assert in_cache("digits-2") == temporary(tmp_path) / "digits-2"


def test_a_temporary_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    (tmp_path / "other").mkdir()
    temporary(tmp_path).symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=r"somebody else's.*APTS_MPI_CACHE"):
        in_cache("digits-2")
