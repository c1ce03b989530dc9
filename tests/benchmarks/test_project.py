"""The cost model: its fits and predictions against rows it made, its projections and pages."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")
pytest.importorskip("scipy", reason="the benchmarks need scipy: pip install .[bench]")

from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness.results import Row
from benchmarks.harness.rows import read
from benchmarks.project.command import CONFIG
from benchmarks.project.fit import Fitted, costs_of, fits_of, line
from benchmarks.project.grid import MEASURED, pays_to, project
from benchmarks.project.plan import read_plan
from benchmarks.project.predict import predict
from benchmarks.project.rows import Measured, network, scaling
from tests.benchmarks.project_rows import MADE, SLOWDOWN, STEPS, N, made_rows


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return made_rows()


def measured_of(rows: list[Row]) -> list[Measured]:
    return scaling(row for row in rows if row["settings"]["benchmark"] in ("strong", "weak"))


def narrow_of(rows: list[Row]) -> list[Measured]:
    return network(row for row in rows if row["settings"]["benchmark"] == "network")


def messages_of(rows: list[Row]) -> dict[tuple[int, str, str], Fitted]:
    return fits_of(row for row in rows if row["settings"]["benchmark"] == "micro")


def test_the_fit_finds_the_parameters_that_made_the_rows(rows: list[Row]) -> None:
    measured = measured_of(rows)
    assert {m.ranks for m in measured} == {1, 2}  # more ranks than cores are not used
    alone = [m for m in measured if m.ranks == 1]
    for method, made in MADE.items():
        found, donors = costs_of(method, "128,128", 250, N, alone)
        assert {m.method for m in donors} == {method}
        for name in ("gradient", "evaluation", "sample", "other"):
            assert getattr(found, name) == pytest.approx(getattr(made, name), abs=1e-12), name
        if method in STEPS:  # two numbers of steps tell the parts of the algebra apart
            assert found.step == pytest.approx(made.step)
            assert found.join == pytest.approx(made.join)
    # A network that was not measured: in proportion to its parameters.
    large, _ = costs_of("adam", "1024,784", 250, 10 * N, alone)
    assert large.gradient == pytest.approx(10 * MADE["adam"].gradient)
    assert large.other == pytest.approx(MADE["adam"].other)
    # A method that was not: from the others of its family.
    assert {m.method for m in costs_of("sgd", "128,128", 250, N, alone)[1]}.isdisjoint({"apts-sr1"})
    with pytest.raises(InputError, match="one rank"):
        costs_of("adam", "128,128", 250, N, [])


def test_a_line_through_measured_points() -> None:
    assert line([250, 500], [3.0, 5.0]) == pytest.approx((1.0, 0.008))
    assert line([250, 250], [3.0, 5.0]) == pytest.approx((0.0, 0.016))  # one size: no intercept
    assert line([1, 10], [1.0, 100.0])[0] == 0.0  # never negative
    assert line([1, 10], [5.0, 4.0]) == (4.5, 0.0)


def test_the_model_predicts_what_it_made(rows: list[Row]) -> None:
    predictions, left = predict(measured_of(rows), narrow_of(rows), messages_of(rows))
    assert not left
    kinds = [(one.of.of["benchmark"], one.of.of["method"], one.of.ranks) for one in predictions]
    assert len(kinds) == 12
    assert sorted(kinds) == sorted(
        [
            *((benchmark, method, 2) for benchmark in ("strong", "weak") for method in MADE),
            *(("network", method, hosts) for method in ("apts", "adam") for hosts in (2, 4)),
        ]
    )
    for one in predictions:
        assert one.parts.total == pytest.approx(one.measured, rel=1e-9), one.of.of
        assert one.slowdown == pytest.approx(SLOWDOWN * (2 if one.of.ranks == 4 else 1))
        assert one.alone < one.parts.total


@pytest.mark.parametrize("method", MADE)
def test_a_prediction_has_not_seen_what_it_predicts(rows: list[Row], method: str) -> None:
    before, _ = predict(measured_of(rows), narrow_of(rows), messages_of(rows))
    changed = copy.deepcopy(rows)
    for row in changed:
        settings = row["settings"]
        if settings.get("method") == method and settings.get("ranks", 1) > 1:
            row["seconds"] = [3 * t for t in row["seconds"]]
        if "iteration_seconds" in row:
            row["iteration_seconds"] = [3 * t for t in row["iteration_seconds"]]
    after, _ = predict(measured_of(changed), [], messages_of(changed))
    own = [(a, b) for a, b in zip(before, after, strict=False) if a.of.method == method]
    assert len(own) == 2
    for a, b in own:
        assert b.parts.total == pytest.approx(a.parts.total)
        assert b.measured == pytest.approx(3 * a.measured)


def test_stragglers_are_waited_for(rows: list[Row]) -> None:
    chance = np.random.default_rng(5)
    noisy = copy.deepcopy(rows)
    for row in noisy:
        if row["settings"].get("phase") == "gradient":
            row["seconds"] = (np.array(row["seconds"]) * chance.gamma(50.0, 0.02, 12)).tolist()
    predictions, _ = predict(measured_of(noisy), [], messages_of(noisy))
    assert all(one.parts.imbalance > 0.0 for one in predictions)
    errors = [abs(one.parts.total / one.measured - 1.0) for one in predictions]
    assert np.median(errors) < 0.15


def test_a_run_that_is_not_all_there_is_left_out(rows: list[Row]) -> None:
    def is_one(row: Row) -> bool:
        s = row["settings"]
        return (s["benchmark"], s.get("method"), s.get("ranks")) == ("strong", "adam", 2)

    own = [row for row in rows if is_one(row)]
    assert len(measured_of(own)) == 1
    assert len(measured_of(own)[0].seconds) == 24
    assert len(measured_of(own[:-1])[0].seconds) == 12
    assert measured_of(own[:-1][::2]) == []


# ---- projections ---------------------------------------------------------------------------------


def test_projections_are_monotone_where_they_must_be(rows: list[Row]) -> None:
    plan = read_plan(CONFIG)
    found = project(plan, [m for m in measured_of(rows) if m.ranks == 1])
    computes = {one.compute for one in found}
    assert MEASURED in computes
    assert len(computes) == 2
    assert len(found) == 2 * 4 * 4 * len(plan.methods)
    by = {(p.compute, p.method, p.parameters, p.network): p for p in found}
    names = [network.name for network in plan.networks]
    for (compute, method, parameters, network_name), one in by.items():
        ranks = sorted(one.epoch)
        assert ranks[0] == 1
        assert one.efficiency[1] == 1.0
        # A faster network is never slower, nor is a larger network of neurons faster.
        if network_name != names[-1]:
            faster = by[compute, method, parameters, names[names.index(network_name) + 1]]
            assert all(faster.epoch[n] <= one.epoch[n] for n in ranks)
        if parameters != plan.parameters[-1]:
            size = plan.parameters[plan.parameters.index(parameters) + 1]
            larger = by[compute, method, size, network_name]
            assert all(larger.epoch[n] > one.epoch[n] for n in ranks)
        # What a message costs grows with ranks; what a rank computes for an epoch shrinks.
        messages = [one.parts[n].vector for n in ranks]
        assert messages == sorted(messages)
        assert pays_to(one.epoch, plan.pays) in ranks
    # Adam with a message a step ends where a rank would have no sample, and pays no longer than
    # apts where messages are dear.
    adam = by[MEASURED, "adam", 118_282, "1 Gbit/s"]
    assert max(adam.epoch) == 256
    apts = by[MEASURED, "apts", 118_282, "1 Gbit/s"]
    assert pays_to(adam.epoch, plan.pays) < pays_to(apts.epoch, plan.pays)


def test_how_far_a_method_pays() -> None:
    assert pays_to({1: 8.0, 2: 4.1, 4: 2.6, 8: 2.0, 16: 1.0}, 1.5) == 4
    assert pays_to({1: 8.0, 2: 7.0, 4: 1.0}, 1.5) == 1
    assert pays_to({1: 8.0, 2: 4.0}, 1.5) == 2


# ---- the command ---------------------------------------------------------------------------------


def write_rows(folder: Path, rows: list[Row]) -> None:
    for benchmark in ("strong", "weak", "micro", "network"):
        own = [json.dumps(row) for row in rows if row["settings"]["benchmark"] == benchmark]
        (folder / f"{benchmark}.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")


def small_config(path: Path) -> Path:
    text = CONFIG.read_text(encoding="utf-8")
    for name, value in (("ranks", "[2, 4, 8]"), ("parameters", "[10_000_000]")):
        start = text.index(f"\n{name} = ") + 1
        text = text[:start] + f"{name} = {value}" + text[text.index("\n", start) :]
    # Two networks are enough.
    last, end = text.index('[[networks]]\nname = "100'), text.index("# label:")
    path.write_text(text[:last] + text[end:], encoding="utf-8")
    return path


def test_the_command_writes_its_pages(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path, rows)
    config = small_config(tmp_path / "small.toml")
    assert main(["project", "--out", str(tmp_path), "--config", str(config)]) == 0
    written = read([tmp_path / "project.jsonl"])
    predictions, projections = written["prediction"], written["projection"]
    assert len(predictions) == 12
    for row in predictions:
        assert not {"rank", "phase", "repetition"} & set(row["settings"]["of"])
        assert row["predicted"] == pytest.approx(row["measured"], rel=1e-3)
    assert {row["settings"]["ranks"] for row in projections} == {1, 2, 4, 8}
    assert len(projections) == 2 * 1 * 2 * 6 * 4
    keys = {
        tuple(row["settings"][k] for k in ("method", "parameters", "network", "ranks"))
        for row in projections
    }
    assert len(keys) == len(projections)
    assert all(row["seconds_per_epoch"] > 0 < row["efficiency"] for row in projections)

    page = (tmp_path / "project.md").read_text(encoding="utf-8")
    assert "The model is off by 0.00 percent (median of 12 points; aim: at most 15.0: met)" in page
    head, _, tail = page.partition("## Projection: beyond what was measured")
    assert "projection" not in head
    assert "**Everything from here on is a projection.**" in tail
    assert all("Projection" in part for part in tail.splitlines() if part.startswith("###"))
    assert "an assumption, not measured" in tail
    assert "stops paying beyond N" in tail
    assert "ranks messages take" in tail


def test_what_was_written_is_told_again(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path, rows)
    config = small_config(tmp_path / "small.toml")
    assert main(["project", "--out", str(tmp_path), "--config", str(config)]) == 0
    page, rows_before = (tmp_path / "project.md"), (tmp_path / "project.jsonl").read_bytes()
    text = page.read_bytes()
    page.unlink()
    (tmp_path / "strong.jsonl").unlink()
    assert main(["project", "--out", str(tmp_path), "--report-only"]) == 0
    assert page.read_bytes() == text
    assert (tmp_path / "project.jsonl").read_bytes() == rows_before


def complaint(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["project", *map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


def test_missing_and_bad_input_give_one_line(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    told = complaint(capsys, "--out", tmp_path)
    assert "strong.jsonl: no such results; run python -m benchmarks strong first" in told
    write_rows(tmp_path, rows)
    (tmp_path / "micro.jsonl").unlink()
    (tmp_path / "network.jsonl").unlink()
    told = complaint(capsys, "--out", tmp_path)
    assert "micro.jsonl: no such results; run python -m benchmarks micro first" in told
    told = complaint(capsys, tmp_path / "strong.jsonl", "--out", tmp_path)
    assert "run micro first" in told
    bad = tmp_path / "bad.jsonl"
    for text in ("{", "[]", '{"settings": {}}'):
        bad.write_text(text + "\n", encoding="utf-8")
        assert "bad.jsonl: line 1 is not" in complaint(capsys, bad, "--out", tmp_path)
    row = next(row for row in rows if row["settings"]["benchmark"] == "weak")
    network = next(row for row in rows if row["settings"]["benchmark"] == "network")
    for broken in (
        {k: v for k, v in row.items() if k != "oversubscribed"},
        {**row, "settings": {k: v for k, v in row["settings"].items() if k != "phase"}},
        {k: v for k, v in network.items() if k != "parameters"},
    ):
        micro = [json.dumps(r) for r in rows if r["settings"]["benchmark"] == "micro"]
        bad.write_text("\n".join([json.dumps(broken), *micro]), encoding="utf-8")
        assert "is missing" in complaint(capsys, bad, "--out", tmp_path)
    zero = [{**r, "evaluations": 0} for r in rows if r["settings"]["benchmark"] == "weak"]
    bad.write_text("\n".join(map(json.dumps, zero)), encoding="utf-8")
    assert "evaluations = 0 is not valid" in complaint(capsys, bad, "--out", tmp_path)
    bad.write_text(
        "".join(json.dumps(r) + "\n" for r in rows if r["settings"].get("ranks") != 1),
        encoding="utf-8",
    )
    assert "no run of strong or weak on one rank" in complaint(capsys, bad, "--out", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("pays = 1.5", "pays = 1", "pays must be above 1"),
        ("pays = 1.5", "pays = 'much'", "pays = 'much' must be of type float"),
        ("pays = 1.5", "", "pays is missing"),
        ("ranks = [2, 4, 8]", "ranks = [2, 8]", "without a gap"),
        ("latency = 35e-6", "latency = -1", "latency must be"),
        ('name = "10 Gbit/s"', 'name = "1 Gbit/s"', "names of their own"),
        ('method = "sgd"', 'method = "newton"', "method is none of apts, adam"),
        ("local_steps = 20", "local_steps = 0", "local_steps are for local methods"),
        ("flops = 20e12", "flops = 0", "rates must be positive"),
    ],
)
def test_a_bad_configuration_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, told: str
) -> None:
    path = small_config(tmp_path / "small.toml")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert told in complaint(capsys, "--config", path, "--out", tmp_path)
