"""Jobs are limited in time, results are kept whole, runs of a kind share a job."""

from __future__ import annotations

import json
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from benchmarks.harness import data
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.results import Results, Row, in_order
from benchmarks.harness.runs import batches
from benchmarks.harness.sections import (
    Finding,
    Image,
    Markdown,
    Picture,
    Section,
    Table,
    to_markdown,
)
from benchmarks.harness.worker import collect, work
from benchmarks.report.write import to_html
from tests.benchmarks.support import needs_mpirun, rows_of


def test_batches_of_runs_share_data_and_ranks() -> None:
    todo = [{"data": "d", "ranks": ranks, "n": n} for n in range(25) for ranks in (1, 2)]
    made = list(batches(todo, 1))
    assert [len(batch) for batch in made] == [10, 10, 5] * 2
    assert all(len({settings["ranks"] for settings in batch}) == 1 for batch in made)
    assert max(len(batch) for batch in batches(todo, 2)) == 7
    assert sorted(map(repr, todo)) == sorted(repr(s) for batch in made for s in batch)


def test_where_cifar_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz"):
        data.find("cifar10", tmp_path)
    inside = tmp_path / "cifar10" / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    (inside / "test_batch.bin").touch()
    monkeypatch.setenv("APTS_MPI_TEST_DATA", str(tmp_path))
    assert data.find("cifar10") == inside.parent
    assert data.find("cifar10", inside) == inside


def test_many_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    files = [Results(path) for _ in range(4)]

    def add(number: int) -> None:
        for i in range(50):
            files[number].add({"file": number, "run": i}, {"text": "x" * 20000})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files[0].get({"file": 3, "run": 0}) is None
    files[0].read()
    assert files[0].get({"file": 3, "run": 0}) is not None
    files[0].forget({"file": 3, "run": i} for i in range(50))
    again = Results(path)
    assert again.get({"file": 3, "run": 0}) is None
    assert again.get({"file": 2, "run": 49}) is not None
    assert len(rows_of(path)) == 150


@needs_mpirun
def test_the_clock_starts_anew_with_every_run() -> None:
    ticks = "import time\nfor i in range(5): time.sleep(0.6); print('tick', flush=True)"
    mpirun(1, ["-c", ticks], timeout=2.5, heard=lambda line: line == "tick")


def test_results_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"settings": {}}\nhalf a li', encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        Results(path)


@needs_mpirun
def test_a_run_that_hangs_is_ended() -> None:
    with pytest.raises(RunFailed, match="no end within 2 s"):
        mpirun(2, ["-c", "import time; time.sleep(60)"], timeout=2)


def halves(comm: Comm, folder: Path, number: int) -> float:
    """A task; it fails for odd numbers, on all ranks."""
    if number % 2:
        raise FloatingPointError(f"{number} is not finite")
    return number / 2


def kept(outcome: Outcome) -> tuple[list[Row], str]:
    return [{"half": outcome.values[0]}], "done"


def job_of(*numbers: int) -> Job:
    pieces = [
        Piece(
            settings=[{"n": n, "optimizer": "sgd"}],
            words=str(n),
            arguments={"number": n},
            keep=kept,
        )
        for n in numbers
    ]
    return Job(task=f"{__name__}:halves", ranks=1, pieces=pieces)


def session(tmp_path: Path, **options: object) -> Session:
    return Session(Namespace(**options), Results(tmp_path / "x.jsonl"), tmp_path)


def test_the_worker_goes_on_after_a_piece_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"task": f"{__name__}:halves", "pieces": [{"number": n} for n in (1, 4)]}
    path = tmp_path / "pieces.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    work(path)
    assert capsys.readouterr().out.splitlines() == ["ended 0 1 is not finite", "ended 1"]
    assert collect(tmp_path / "1", 1) == [2.0]


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_a_session_measures_what_is_missing(tmp_path: Path) -> None:
    made = session(tmp_path)
    made.results.add({"n": 2, "optimizer": "sgd"}, {"half": "old"})
    made.measure([job_of(1, 2, 4)])
    assert {row["settings"]["n"]: row["half"] for row in made.results.rows()} == {2: "old", 4: 2.0}
    assert len(made.failed) == 1


@pytest.mark.parametrize(("fresh", "left"), [(False, [4]), (True, [2, 4])])
def test_fresh_measures_again(tmp_path: Path, fresh: bool, left: list[int]) -> None:
    made = session(tmp_path, fresh=fresh)
    made.results.add({"n": 2, "optimizer": "sgd"}, {"half": 1.0})
    (job,) = made.missing([job_of(2, 4), job_of(4)])
    assert [piece.settings[0]["n"] for piece in job.pieces] == left


def test_cells_are_escaped_unless_they_are_markdown() -> None:
    table = Table("", ["a"], [["x*"], [Markdown("**y**")]])
    text = "\n".join(to_markdown(Section("T", ["`code`", table])))
    assert text.splitlines()[:2] == ["# T", "`code`"]
    assert "x\\*" in text
    assert "**y**" in text


def test_a_command_has_its_image_and_the_page_its_picture() -> None:
    drawn = list[str]()

    def draw() -> str:
        drawn.append("once")
        return "<svg>"

    picture = Picture("name", "Title", "caption", "alt", draw, (Finding("found"),))
    section = Section("T", [picture, Image("plot", "plot.png")])
    assert list(to_markdown(section)) == ["# T", "found", "![plot](plot.png)"]
    assert drawn == []  # no drawing where none is shown
    page = to_html(section)
    places = [page.index(part) for part in (">Title<", ">found<", "<svg>", ">caption<")]
    assert places == sorted(places)
    assert "plot.png" not in page
    assert (picture.svg, drawn) == ("<svg>", ["once"])


def test_rows_come_in_the_order_of_what_is_known() -> None:
    pairs = [("b", 2), ("a", 1), ("b", 1)]
    rows = [{"settings": {"name": name, "ranks": ranks}} for name, ranks in pairs]
    found = [tuple(row["settings"].values()) for row in in_order(rows, name="ba", ranks=None)]
    assert found == [("b", 1), ("b", 2), ("a", 1)]
