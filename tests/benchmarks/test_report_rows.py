"""Files of results that are not as they should be are refused in a line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness.results import Results, packed
from benchmarks.harness.rows import read
from tests.benchmarks.report_rows import network, strong_pair, written


def complaint(*paths: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(paths)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_truncated_file(tmp_path: Path) -> None:
    path = written(tmp_path / "cut.jsonl", strong_pair())
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-40], encoding="utf-8")
    last = len(text.splitlines())
    assert complaint(path) == f"{path}: line {last} is not JSON; was the file cut off?"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("[1, 2]", "line 1 is not a result"),
        ('{"settings": {"benchmark": "cooking"}}', "line 1 is not of a benchmark that is known"),
        ('{"settings": {}}', "line 1 is not of a benchmark"),
        ('{"settings": {"benchmark": "project", "kind": "x"}}', "line 1 is not of a benchmark"),
        ('{"settings": {"benchmark": "strong"}}', "line 1, of strong: method is missing"),
        ("", "holds no results"),
        ("[" * 10_000, "line 1 is not JSON"),
    ],
)
def test_unknown_rows(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    assert part in complaint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("seconds", v) for v in ([], [float("nan")], [-1.0], ["1"], 3.0, [10**400])],
        *[("evaluations", v) for v in (0, True, None, "many")],
        ("oversubscribed", "no"),
    ],
)
def test_values_out_of_range(tmp_path: Path, name: str, value: Any) -> None:
    rows = strong_pair()
    rows[4][name] = value
    assert f"line 5, of strong: {name} " in complaint(written(tmp_path / "a.jsonl", rows))


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    one, two = strong_pair(), strong_pair()
    two[0]["run"] = "another"
    paths = (written(tmp_path / "a.jsonl", one), written(tmp_path / "b.jsonl", two))
    assert "b.jsonl: line 1 and" in complaint(*paths)
    assert len(read([paths[0], written(tmp_path / "c.jsonl", one)])["strong"]) == len(one)


def test_of_two_results_in_a_file_the_later(tmp_path: Path) -> None:
    rows = network({"apts": 9.0}) + network({"apts": 2.0})
    found = read([written(tmp_path / "a.jsonl", rows)])
    assert [row["seconds_to_target"] for row in found["network"]] == [2.0]


def test_packed_rows_count_and_later_ones_beside_them_more(tmp_path: Path) -> None:
    path = written(tmp_path / "network.jsonl", network({"apts": 9.0, "adam": 8.0}))
    packed(path).write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert len(read([path])["network"]) == len(read([packed(path)])["network"]) == 2
    written(path, network({"apts": 2.0}))
    assert sorted(row["seconds_to_target"] for row in read([path])["network"]) == [2.0, 8.0]
    results = Results(path)
    results.forget([])
    assert not packed(path).exists()
    assert len(Results(path).rows()) == 2
    packed(path).write_bytes(b"\x1f\x8b cut")
    assert "network.jsonl: cannot be read" in complaint(path)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
