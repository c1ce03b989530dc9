"""The program as its users run it: one command, real ranks, one clear line when it cannot."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.data import load_source, write_shards
from apts_mpi.settings.defaults import plan
from tests.conftest import Finished, Launch

SUMMARY_KEYS = set(
    "optimizer,local_solver,network,parameters,dataset,ranks,threads_per_rank,device,seed,epochs,"
    "outer_iterations,accepted,rejected,gradient_evaluations,train_loss,test_loss,test_accuracy,"
    "best_test_accuracy,vector_allreduces,bytes_allreduced,seconds_total,seconds_compute,"
    "seconds_communication,seconds_wait,seconds_data,seconds_evaluation,versions,git_commit".split(
        ","
    )
)


def train(launch: Launch, ranks: int, *flags: str | Path, timeout: float = 90) -> Finished:
    return launch(ranks, "-m", "apts_mpi", *flags, timeout=timeout)


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return json.loads((run / "summary.json").read_text()), [json.loads(row) for row in rows]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The digits in two shards."""
    write_shards(load_source("digits"), tmp_path / "d2", shards=2)
    return tmp_path / "d2"


def test_eight_ranks_train_the_digits_to_96_percent_with_defaults(
    launch: Launch, tmp_path: Path
) -> None:
    done = train(launch, 8, "--out", "run")
    assert done.status == 0, done.err
    summary, rows = read(tmp_path / "run")
    assert summary["test_accuracy"] >= 0.96
    assert set(summary) >= SUMMARY_KEYS
    assert summary["ranks"] == 8
    assert summary["outer_iterations"] == len(rows) == rows[-1]["iteration"]
    assert summary["accepted"] == sum(row["accepted"] for row in rows)
    evaluations = sum(row["gradient_evaluations"] for row in rows)
    assert summary["gradient_evaluations"] == pytest.approx(evaluations)
    assert summary["epochs"] == pytest.approx(evaluations / 1437)
    assert (summary["optimizer"], summary["local_solver"]) == ("apts", "spectral")
    assert summary["accepted"] + summary["rejected"] == len(rows)
    # The first iteration has one more, to search the radius.
    assert summary["vector_allreduces"] == len(rows) + 1
    assert rows[0]["local_tried"] == 8 * plan(8, 1437)[1]
    assert "test accuracy" in done.out
    assert "oversubscribed" in done.err or summary["oversubscribed"] is False


def test_a_run_repeats_bit_for_bit_from_its_config(launch: Launch, tmp_path: Path) -> None:
    flags = ("--iterations", "4", "--batch", "100", "--overlap", "5", "--seed", "3")
    more = ("--local-solver", "sr1", "--subdomains-per-rank", "2")
    first = train(launch, 0, *more, *flags, "--out", "a")
    assert first.status == 0, first.err
    again = train(launch, 0, "train", "--config", "a/config.toml", "--out", "b")
    assert again.status == 0, again.err
    one, two = read(tmp_path / "a"), read(tmp_path / "b")
    assert untimed(one[1]) == untimed(two[1])
    for key in ("train_loss", "test_loss", "test_accuracy", "bytes_allreduced"):
        assert one[0][key] == two[0][key]


@pytest.mark.parametrize(
    "flags",
    [
        ("--local-solver", "first-order", "--norm", "inf", "--global-step", "off"),
        ("--local-solver", "sr1", "--join", "sum", "--consistency", "off", "--window", "3"),
    ],
)
def test_variants_of_the_method_lower_the_loss(
    launch: Launch, shards: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    # Three ranks over two shards: each reads its part of the global order.
    done = train(launch, 3, "--data", "d2", "--iterations", "6", "--out", "run", *flags)
    assert done.status == 0, done.err
    _, rows = read(tmp_path / "run")
    assert rows[-1]["loss"] < 0.8 * math.log(10)


def test_without_mpirun_one_rank_trains(launch: Launch, tmp_path: Path) -> None:
    flags = ("--iterations", "3", "--device", "cpu", "--precision", "tf32")
    done = train(launch, 0, *flags, "--out", "run")
    assert done.status == 0, done.err
    assert "--precision tf32 is a GPU's; cpu computes in fp32" in done.err
    summary, rows = read(tmp_path / "run")
    assert summary["ranks"] == 1
    assert summary["test_accuracy"] > 0.8
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_help_names_every_command_and_is_told_once(launch: Launch) -> None:
    done = train(launch, 2, "--help")
    assert done.status == 0
    assert done.out.count("exit status:") == 1
    for flag in (
        "--help-all",
        "--batch",
        "shard SOURCE",
        "inspect PATH",
        "evaluate CHECKPOINT",
        "export CHECKPOINT",
    ):
        assert flag in done.out


def test_inspect_verifies_what_shard_wrote(launch: Launch, shards: Path) -> None:
    done = train(launch, 0, "inspect", "d2")
    assert done.status == 0, done.err
    assert "1437" in done.out.replace(",", "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bogus",), "--bogus"),
        (("--local-steps", "0"), "--local-steps 0: "),
        (("--norm", "inf"), "--norm inf"),
        (("--local-solver", "sr1", "--overlap", "5"), "--overlap 5"),
        (("--data", "nowhere"), "nowhere"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("inspect", "nowhere"), "nowhere"),
        (("shard", "mnist", "--from", "nowhere", "--out", "x", "--shards", "2"), "nowhere"),
        (("shard", "digits", "--out", "x", "--shards", "2", "--sizes", "a,b"), "--sizes a,b"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    launch: Launch, flags: tuple[str, ...], said: str
) -> None:
    done = train(launch, 0, *flags)
    assert done.status == 2
    assert len(done.told) == 1
    assert said in done.told[0]
    assert "Traceback" not in done.err


def test_a_setting_for_other_data_is_refused_by_all_ranks_in_one_line(launch: Launch) -> None:
    done = train(launch, 2, "--context", "5")
    assert done.status == 2
    assert len(done.told) == 1
    assert "--context 5: is for language" in done.told[0]


def damage_truncate(shards: Path) -> str:
    path = shards / "train-00001-of-00002.h5"
    path.write_bytes(path.read_bytes()[:5000])
    return path.name


def damage_missing(shards: Path) -> str:
    (shards / "train-00001-of-00002.h5").unlink()
    return "train-00001-of-00002.h5"


def damage_flip(shards: Path) -> str:
    path = shards / "train-00001-of-00002.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path.name


def damage_not_hdf5(shards: Path) -> str:
    (shards / "train-00001-of-00002.h5").write_text("not a shard")
    return "train-00001-of-00002.h5"


@pytest.mark.parametrize(
    ("damage", "ranks"),
    [(damage_truncate, 3), (damage_missing, 2), (damage_flip, 0), (damage_not_hdf5, 0)],
)
def test_a_damaged_shard_ends_all_ranks_with_one_line(
    launch: Launch, shards: Path, tmp_path: Path, damage: Any, ranks: int
) -> None:
    name = damage(shards)
    done = train(launch, ranks, "--data", "d2", "--out", "run")
    assert done.status == 2
    assert len(done.told) == 1, done.err
    assert name in done.told[0]
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_samples_are_refused(launch: Launch, tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", x=rng.normal(size=(3, 3)), y=np.array([0, 1, 0]))
    made = train(launch, 0, "shard", "arrays", "--from", "few.npz", "--out", "few", "--shards", "1")
    assert made.status == 0, made.err
    done = train(launch, 4, "--data", "few")
    assert done.status == 2
    assert len(done.told) == 1


def test_ranks_with_different_settings_end_with_a_line_that_says_which(
    launch: Launch, python: str
) -> None:
    both = ("-m", "apts_mpi", "--iterations", "2", "--seed")
    done = launch(1, *both, "0", ":", "-n", "1", python, *both, "1")
    assert done.status == 2
    assert len(done.told) == 1
    assert "seed = 1" in done.told[0]
    assert "seed = 0" in done.told[0]


def test_ranks_that_see_different_data_are_told_so(
    launch: Launch, tmp_path: Path, python: str
) -> None:
    for name, seed in (("a", "0"), ("b", "1")):
        (tmp_path / name).mkdir()
        out = ("--out", f"{name}/d", "--shards", "2", "--seed", seed)
        assert train(launch, 0, "shard", "digits", *out).status == 0
    (tmp_path / "main.py").write_text(
        "import os, sys\n"
        "os.chdir(sys.argv.pop(1))\n"
        "from apts_mpi.__main__ import main\n"
        "sys.exit(main())\n"
    )
    flags = ("--data", "d", "--iterations", "2")
    other = (":", "-n", "1", python, "main.py", "b", *flags)
    done = launch(1, "main.py", "a", *flags, *other)
    assert done.status == 2, done.err
    assert len(done.told) == 1
    assert "data unlike rank 0's" in done.told[0]


def test_training_ends_where_the_gradient_is_zero(launch: Launch, tmp_path: Path) -> None:
    import numpy as np

    x = np.repeat(np.array([[-1e4], [1e4]], np.float32), 50, axis=0)
    np.savez(tmp_path / "apart.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    shard = ("shard", "arrays", "--from", "apart.npz", "--out", "apart", "--shards", "1")
    assert train(launch, 0, *shard).status == 0
    flags = ("--data", "apart", "--local-solver", "first-order", "--epochs", "1e5", "--out", "run")
    done = train(launch, 0, *flags)
    assert done.status == 0, done.err
    assert "the gradient is zero" in done.err


def test_a_run_directory_is_never_written_over(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("precious")
    done = train(launch, 0, "--out", "run")
    assert done.status == 2
    assert "--out run" in done.told[0]
    assert (tmp_path / "run" / "summary.json").read_text() == "precious"


def test_progress_without_a_terminal_is_plain_lines(launch: Launch) -> None:
    done = train(launch, 0, "--epochs", "20", "--hidden", "8", "--threads", "1")
    assert done.status == 0
    lines = [line for line in done.err.splitlines() if " elapsed, " in line]
    assert lines
    assert lines[-1].startswith("100 %  epoch ")
    assert all(re.search(r"test accuracy 0\.\d{4}", line) for line in lines)
    assert "\r" not in done.err


def test_the_cache_is_made_once(launch: Launch, cache: Path) -> None:
    shutil.rmtree(cache / "digits-2", ignore_errors=True)
    first = train(launch, 2, "--iterations", "1", "--local-steps", "5")
    second = train(launch, 2, "--iterations", "1", "--local-steps", "5")
    assert first.status == second.status == 0
    assert "cutting the digits" in first.err
    assert "cutting the digits" not in second.err
