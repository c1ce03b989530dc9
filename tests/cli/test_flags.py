"""Flags: what help shows, and one line with what is meant where a name is not known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apts_mpi.cli.flags import COMMANDS
from apts_mpi.cli.main import main, train_settings
from apts_mpi.errors import AgreedError
from apts_mpi.settings.config import GROUPS, SETTINGS
from apts_mpi.settings.habits import meant

FIRST = set(
    "--data --network --epochs --batch --seed --device --out --checkpoint-every --resume "
    "--optimizer --lr --config".split()
)
RULE = {"--smoothing", "--grow-above", "--grow", "--shrink-below", "--shrink", "--window"}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def flags_of(text: str) -> set[str]:
    """The flags that a help text has a line for."""
    return set(re.findall(r"^  (--[a-z-]+)", text, re.M))


def refusal(*arguments: str) -> str:
    with pytest.raises(AgreedError) as caught:
        main(arguments)
    assert caught.value.status == 2
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has started this process."""
    monkeypatch.setattr("apts_mpi.comm.job.launched", lambda: None)


def test_help_shows_the_flags_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags_of(shown(capsys, "--help")) == FIRST | {"--help-all", "--version"}


def test_help_all_shows_every_flag_but_those_of_the_noisy_rule(
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = {each.flag for each in SETTINGS.values()} | {"--config", "--help-all", "--version"}
    assert flags_of(shown(capsys, "train", "--help-all")) == every - RULE


def test_help_all_names_the_settings_it_does_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    end = shown(capsys, "--help-all").rpartition("Seldom needed")[2]
    assert all(flag[2:].replace("-", "_") in end for flag in RULE)


@pytest.mark.parametrize("heading", GROUPS)
def test_help_all_has_every_group(heading: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n{heading}:\n  --" in shown(capsys, "--help-all")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, command, "--help").startswith("usage: ")


def test_flags_that_are_not_shown_are_taken() -> None:
    assert train_settings("--smoothing 0.5 --window 3 --shrink-below -0.25".split()).window == 3


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--epoch 3", "--epoch: no such flag; did you mean --epochs?"),
        ("--optimiser adam", "did you mean --optimizer?"),
        ("--bogus 5", "--bogus: no such flag (see python -m apts_mpi --help-all)"),
        ("--batch-size=32", "--batch-size: no such flag; use --batch: .*per rank"),
        ("--learning-rate 0.1", "use --lr with a baseline .* apts has none"),
        ("--num-epochs 3", "use --epochs"),
        ("-e 3", "-e: no such flag; use --epochs"),
        ("--amp", "use --precision bf16"),
        ("--quantize 8", "use --compress"),
        ("--gpus 2", "use --device"),
        ("--num-workers 2", "--threads sets threads per rank"),
        ("--nproc-per-node 2", "mpirun -n RANKS"),
        ("--batch_size 2", "use --batch"),
        ("--wd 0.1", "use --weight-decay"),
        ("trian --epochs 3", "trian: no such command; did you mean train?"),
        ("bogus", "commands are train, shard, inspect, evaluate, predict, plot, export"),
        ("evalute run", "did you mean evaluate?"),
        ("shard mnst --out d --shards 2", "source mnst: must be .*; did you mean mnist?"),
        ("shard arrays --task regresion --out d --shards 2", "did you mean regression?"),
        ("shard digits --output d --shards 2", "did you mean --out?.*apts_mpi shard --help"),
        ("evaluate run --split tset", "--split tset: must be .*; did you mean test?"),
        ("shard --version", "--version: no such flag"),
        ("--optimizer adamm", "--optimizer adamm: must be .*; did you mean adam?"),
        ("--local-solver scale", "did you mean scaled?"),
        ("--compress bf61", "did you mean bf16?"),
        ("--network resnt", "did you mean resnet?"),
        ("--optimizer sgd --momentum 0.9", "--optimizer sgd, whose momentum is 0.9"),
        ("--batch", "--batch: expected one argument"),
        ("--batch many", "--batch many: must be a whole number from 1"),
        ("--see 3", "did you mean --seed?"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_meant(arguments: str, word: str) -> None:
    assert re.search(word if ".*" in word else re.escape(word), refusal(*arguments.split()))


@pytest.mark.parametrize("name", ["epoch", "batchs", "hiden"])
def test_an_unknown_setting_of_a_file_is_refused_with_what_is_meant(
    name: str, tmp_path: Path, alone: None
) -> None:
    (tmp_path / "c.toml").write_text(f"{name} = 3\n")
    line = refusal("--config", str(tmp_path / "c.toml"))
    assert re.search(f"unknown setting '{name}'; did you mean (epochs|batch|hidden)\\?", line)


@pytest.mark.parametrize("name", ["batch_size", "learning_rate", "amp", "weight_decay"])
def test_every_flag_that_is_recommended_is_one(name: str) -> None:
    text = meant(name, SETTINGS)
    assert text
    known = {each.flag for each in SETTINGS.values()} | {"--config"}
    assert set(re.findall(r"--[a-z-]+", text)) <= known
