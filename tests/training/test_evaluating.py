"""What a run evaluates, how often, what it calls best, and when it loses patience."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from apts_mpi.checkpoints.folder import newest
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.alone import Alone
from apts_mpi.data import load_source, write_shards
from apts_mpi.errors import AgreedError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.training.loop import Training
from apts_mpi.training.progress import Progress
from apts_mpi.training.samples import Held, spread

SMALL = ("--hidden", "8", "--threads", "1", "--batch", "100", "--local-steps", "5")


def figures(accuracy: float) -> dict[str, float | None]:
    return {"val_loss": 1.0, "val_accuracy": accuracy}


def test_evaluations_since_the_best_are_counted() -> None:
    progress = Progress()
    seen: list[int | None] = []
    assert progress.unimproved is None
    for k, accuracy in enumerate((0.5, 0.7, 0.7, math.nan, 0.8)):
        progress.evaluated({"epoch": 2.0 * k, "passes": 1.0 * k}, figures(accuracy))
        seen.append(progress.unimproved)
    assert seen == [0, 0, 1, 2, 0]
    found = progress.losses
    assert (found["best_val_accuracy"], found["best_epoch"], found["best_passes"]) == (0.8, 8, 4)


@pytest.mark.parametrize(("judged", "every"), [(10, 1.0), (1000, 100.0 / 30.0)])
def test_evaluation_takes_at_most_a_tenth_of_the_work(judged: int, every: float) -> None:
    found = completed(TrainConfig(), 1, 1000, judged=judged)
    assert found.evaluate_every == pytest.approx(every)
    assert completed(TrainConfig(evaluate_every=0.5), 1, 10, judged=judged).evaluate_every == 0.5


class Two(Alone):
    """The first of two ranks, the other of which holds as many samples."""

    def __init__(self, rank: int, own: int) -> None:
        super().__init__()
        self.rank, self.size, self._own = rank, 2, own

    def allreduce(self, buffer: object, op: str = "SUM") -> None:
        assert isinstance(buffer, np.ndarray)
        buffer[1 - self.rank] = self._own


def test_the_same_samples_are_evaluated_on_any_number_of_ranks() -> None:
    x, y = torch.arange(20.0)[:, None], torch.arange(20)
    (whole,) = spread([Held(x, y, 20)], 7, Alone())
    halves = [
        spread([Held(x[part], y[part], 20)], 7, Two(rank, 10))[0]
        for rank, part in enumerate((slice(0, 10), slice(10, 20)))
    ]
    found = [torch.cat([y for _, y in each.blocks(3)]) for each in (whole, *halves)]
    assert found[0].tolist() == torch.cat(found[1:]).tolist() == [0, 2, 5, 8, 11, 14, 17]
    assert {whole.total, *(half.total for half in halves)} == {7}
    assert spread([whole], 8, Alone()) == [whole]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose validation samples stop improving, streamed, with few samples evaluated."""
    home = tmp_path_factory.mktemp("patience")
    write_shards(load_source("digits", val_fraction=0.2), home / "digits", shards=2)
    flags = (*SMALL, "--epochs", "500", "--evaluate-every", "1", "--patience", "3")
    more = ("--stream", "on", "--evaluate-samples", "50", "--data", str(home / "digits"))
    Training(train_settings([*flags, *more, "--out", str(home / "run")]), Alone()).run()
    return home / "run"


def test_a_run_out_of_patience_ends_with_all_it_leaves(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
    assert summary["evaluations_since_best"] == 3
    assert seen[-4] == max(seen) == summary["best_val_accuracy"]
    assert all(accuracy * 50 == pytest.approx(round(accuracy * 50)) for accuracy in seen)
    assert (run / f"checkpoint/{len(rows):08d}").is_dir()


def test_the_best_has_a_checkpoint_of_its_own(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((r for r in rows if "val_accuracy" in r), key=lambda row: row["val_accuracy"])
    found = newest(run / "checkpoint/best", Alone(), print)
    assert found.iteration == best["iteration"]
    assert len(list((run / "checkpoint/best").iterdir())) == 1


def test_patience_needs_validation_samples(tmp_path: Path) -> None:
    flags = train_settings([*SMALL, "--patience", "3", "--out", str(tmp_path / "run")])
    with pytest.raises(AgreedError, match=r"--patience 3: .* --val-fraction"):
        Training(flags, Alone())
