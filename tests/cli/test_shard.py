"""``shard``: flags that the source has no use for, and words that are none of a flag's."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import SOURCES
from apts_mpi.data.sources.load import TAKEN_BY
from apts_mpi.errors import AgreedError

VALUES = {
    "--from": ["x"],
    "--download": [],
    "--channels-last": ["off"],
    "--test-fraction": ["0"],
    "--task": ["regression"],
    "--size": ["3"],
    "--channels": ["1"],
    "--level": ["byte"],
}
MISPLACED = [
    (source, f"--{option}")
    for option, sources in TAKEN_BY.items()
    for source in (*SOURCES, "text")
    if source not in sources
]


def refusal(tmp_path: Path, *words: str) -> str:
    with pytest.raises(AgreedError) as caught:
        main(["shard", *words, "--out", str(tmp_path / "d"), "--shards", "2"], Comm())
    return str(caught.value)


@pytest.mark.parametrize(("source", "flag"), MISPLACED)
def test_a_flag_that_the_source_has_no_use_for_is_refused(
    tmp_path: Path, source: str, flag: str
) -> None:
    line = refusal(tmp_path, source, flag, *VALUES.get(flag, ["a.npy"]))
    why = f"{source} has a test of its own" if flag == "--test-fraction" else "it is for "
    assert line.startswith(f"{flag}: {why}")


def test_the_task_that_a_source_has_anyway_may_be_given(tmp_path: Path) -> None:
    command = ("shard", "digits", "--task", "classification", "--out", str(tmp_path / "d"))
    assert main([*command, "--shards", "2"], Comm()) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("cifar",),
        ("arrays", "--task", "ranking"),
        ("digits", "--normalize", "each"),
        ("text", "--level", "word"),
        ("imagefolder", "--channels", "2"),
    ],
)
def test_a_word_that_is_none_of_a_flags_is_refused_by_name(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert words[-1] in refusal(tmp_path, *words)


@pytest.mark.parametrize("source", ["text", "imagefolder", "arrays"])
def test_a_source_without_its_files_asks_for_them(tmp_path: Path, source: str) -> None:
    assert "--from" in refusal(tmp_path, source)
