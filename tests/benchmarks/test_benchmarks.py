"""The benchmarks run end to end in a tiny form, and their tables tell what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.data import Source
from benchmarks.__main__ import main
from benchmarks.harness import data, tables
from benchmarks.harness.results import Row
from benchmarks.quality.corrections import command as corrections
from benchmarks.quality.published.authors import ADAM, EXTRACT, read_reference
from tests.benchmarks.support import cells_of, needs_mpirun, rows_of


def small_mnist(_name: str, path: Path | None) -> Source:
    """MNIST's shapes, few samples: the real files take longer than a test may."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (120, 1, 28, 28)).astype(np.uint8), np.arange(120) % 10
    return Source("mnist", x, y, x[:40], y[:40], classes=tuple("0123456789"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "nope: no such command"),
        ([], "COMMAND"),
        (["convex", "--iterations", "0"], "--iterations: '0' is not"),
        (["corrections", "--ranks", "two"], "'two' is not like 1,2"),
        (["published", "--iterations", "5"], "'5' is not a whole number from 6 up"),
        (["published", "--mnist", "/nowhere/mnist"], "/nowhere/mnist: no such folder"),
        (["published", "--reference", "/nowhere.csv"], "/nowhere.csv: cannot be read"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)] if len(arguments) > 1 else []
    assert main([*arguments, *out]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_convex_tells_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.convex.command.RADII", (1e-4, 1.0, 1e2))
    assert main(["convex", "--iterations", "60", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "convex.jsonl")
    assert len(rows) == 3 * 3 * 3
    easy = [r for r in rows if r["settings"]["problem"].split(", ")[1] == "condition 10"]
    norms = [r for r in easy if r["settings"]["method"] != "first order, inf-norm"]
    assert all(r["iterations"] is not None and r["gap"] < 1e-6 for r in norms)
    table = cells_of((tmp_path / "convex.md").read_text(encoding="utf-8"))
    told = [cell for line in table[2:] for cell in line[2:]]
    for row, cell in zip(rows, told, strict=True):
        reached = row["iterations"]
        assert cell == (f"({row['gap']:.0e})" if reached is None else str(reached))
    assert (tmp_path / "convex_loss.png").stat().st_size > 1000
    assert (tmp_path / "convex_radius.png").stat().st_size > 1000


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_corrections_run_and_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, kinds = corrections._settings, {("uneven", "sr1"), ("skewed", "first-order")}

    def some(*which: Any) -> list[Row]:
        return [row for row in made(*which) if (row["data"], row["local_solver"]) in kinds]

    monkeypatch.setattr(corrections, "_settings", some)
    command = ["corrections", "--ranks", "2", "--seeds", "0", "--work", "3"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "corrections.jsonl")
    assert len(rows) == 2 * 2 * 3
    text = (tmp_path / "corrections.md").read_text(encoding="utf-8")
    for kind, solver in kinds:
        section = text.split(f"## {kind}, {solver}\n")[1].split("##")[0]
        for n, term, join, _, loss, accuracy in cells_of(section)[2:]:
            wanted = {"data": kind, "local_solver": solver, "join": join, "ranks": int(n)}
            wanted["consistency"] = term == "on"
            group = [r for r in rows if wanted.items() <= r["settings"].items()]
            assert len(group) == 1
            assert loss == tables.span([r["train_loss"] for r in group], ".4f")
            assert accuracy == tables.span([100 * r["test_accuracy"] for r in group])


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_published_runs_tells_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "load_source", small_mnist)
    command = ["published", "--iterations", "6", "--ranks", "2", "--timeout", "100"]
    command += ["--seeds", "0", "--mnist", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    rows = rows_of(tmp_path / "out" / "published.jsonl")
    assert [r["outer_iterations"] for r in rows] == [6, 6]
    assert all("--batch 10 " in r["command"] for r in rows)
    text = (tmp_path / "out" / "published.md").read_text(encoding="utf-8")
    authors = read_reference(EXTRACT)
    for row, line in zip(rows, cells_of(text)[2:], strict=True):
        order = {"first-order": 1, "sr1": 2}[row["settings"]["local_solver"]]
        curve, accuracy = authors["apts_d", 2, order], 100 * row["curves"]["test_accuracy"][-1]
        assert accuracy == pytest.approx(100 * row["test_accuracy"], abs=1e-2)
        assert line[2:5] == [
            curve.at(1),
            tables.span([accuracy]),
            f"{accuracy - curve.mean[1]:+.1f}",
        ]
        assert line[6:8] == [f"{row['curves']['epoch'][-1]:.1f}", str(row["vector_allreduces"])]
    assert str(tmp_path) not in text + json.dumps(rows)
    capsys.readouterr()
    assert main(command) == 0  # nothing runs twice
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert rows_of(tmp_path / "out" / "published.jsonl") == rows
    assert (tmp_path / "out" / "published.md").read_text(encoding="utf-8") == text


def test_the_extract_holds_the_published_figures() -> None:
    curves = read_reference(EXTRACT)
    assert set(curves) == {ADAM} | {("apts_d", n, order) for n in (2, 4, 6) for order in (1, 2)}
    assert all(set(curve.mean) == set(range(101)) for curve in curves.values())
    assert curves["apts_d", 6, 2].at(10) == "86.7 [76.5, 90.8]"


@pytest.mark.usefixtures("all_cores")
def test_streaming_measures_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cost import streaming

    monkeypatch.setattr(streaming, "NETWORKS", {"mlp": streaming.NETWORKS["mlp"]})
    words = ["streaming", "--megabytes", "3", "--minibatches", "5", "--out", str(tmp_path)]
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "streaming.jsonl").read_text().splitlines()]
    assert [row["settings"]["way"] for row in rows] == ["memory", "cold", "warm"]
    assert [row["missed"] for row in rows] == [0, 0, 0]
    assert "MLP 128, 128 | stream, from the disk" in (tmp_path / "streaming.md").read_text()


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_gpu_measures_on_a_cpu_too_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu", "--networks", "mlp-small", "--ways", "fp32", "--ranks", "1", "--device", "cpu"]
    words += ["--repetitions", "3", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "[1/1" in capsys.readouterr().out
    (line,) = (tmp_path / "gpu.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["seconds"]["own"] > 0
    assert row["seconds"]["bare"] > 0
    assert row["counts"]["own"] == {"launches": 0, "copies": 0, "waits": 0}
    assert main(words) == 0
    assert "[1/1" not in capsys.readouterr().out
    assert (tmp_path / "gpu.jsonl").read_text().splitlines() == [line]
    assert "| mlp-small | fp32" in (tmp_path / "gpu.md").read_text()
    assert main([*words[:2], "nothing", *words[3:]]) == 2


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_large_n_trains_alike_on_one_rank_and_on_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apts_mpi.data import load_source
    from benchmarks.quality import large_n

    monkeypatch.setattr(large_n, "ITERATIONS", 2)
    monkeypatch.setattr(data, "find", lambda _source, _given: None)
    monkeypatch.setattr(data, "load_source", lambda _name, path: load_source("digits"))
    assert main(["large_n", "--ranks", "3", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "large_n.jsonl").read_text().splitlines()]
    assert [(row["settings"]["ranks"], len(row["losses"])) for row in rows] == [(1, 2), (3, 2)]
    assert rows[0]["losses"] == pytest.approx(rows[1]["losses"], rel=1e-6)
    assert rows[0]["radii"] == pytest.approx(rows[1]["radii"], rel=1e-6)
    assert "losses apart, relative" in (tmp_path / "large_n.md").read_text()
