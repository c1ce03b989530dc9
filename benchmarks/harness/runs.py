"""Training runs as rows of results: their command lines, jobs, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apts_mpi.method.options import AVERAGING as AVERAGING
from benchmarks.harness.data import Shards
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.results import KEPT, Row, curve, grouped, metrics, summary
from benchmarks.harness.worker import PROGRAM

RUNS = 10  # of a job at most


def command(settings: Row) -> list[str]:
    """The program's arguments for a run, but for --data and --out."""
    network = settings.get("network") or ["--hidden", settings["hidden"]]
    line = [
        *("train", *network, "--epochs", f"{settings['epochs']:g}"),
        *("--seed", str(settings["seed"]), "--device", "cpu", "--threads", "1"),
        *("--evaluate-every", "1"),
    ]
    if settings["optimizer"] != "apts":
        batch = max(1, round(settings["batch"] / settings["ranks"]))
        line += ["--optimizer", settings["optimizer"], "--lr", f"{settings['lr']:g}"]
        line += ["--batch", str(batch)]
    if settings.get("simulated"):
        line += ["--subdomains-per-rank", str(settings["ranks"])]
    if "local_steps" in settings:
        line += ["--local-steps", str(settings["local_steps"])]
    return [*line, *settings["arguments"]]


def jobs(session: Session, wanted: Sequence[Row], shards: Shards) -> list[Job]:
    """Jobs for the runs of these settings that are not done, with shards made for them.

    Raises:
        InputError: the data are missing.
    """
    todo = [settings for settings in wanted if not session.done(_piece(settings, shards))]
    for source, ranks in dict.fromkeys((s["data"], s["ranks"]) for s in todo):
        shards.make(source, ranks)
    at_once = session.options.jobs
    return [
        Job(
            task=PROGRAM,
            # Simulated subdomains are all on one rank.
            ranks=1 if batch[0].get("simulated") else batch[0]["ranks"],
            pieces=[_piece(settings, shards) for settings in batch],
        )
        for batch in batches(todo, at_once)
    ]


def batches(todo: Sequence[Row], at_once: int) -> Iterator[Sequence[Row]]:
    """Runs of the same data and ranks together, so many per job that no thread idles for long."""
    kinds = grouped(todo, lambda s: (s["data"], s["ranks"], bool(s.get("simulated"))))
    for runs in kinds.values():
        size = RUNS if at_once == 1 else min(RUNS, math.ceil(len(runs) / (2 * at_once)))
        yield from (runs[i : i + size] for i in range(0, len(runs), size))


def _piece(settings: Row, shards: Shards) -> Piece:
    line = command(settings)
    made = {"command": " ".join(line)}

    def keep(outcome: Outcome) -> tuple[list[Row], str]:
        row = {**made, **_outcome(outcome)}
        words = f"{100 * row['test_accuracy']:.2f} %, loss {row['test_loss']:.4f}"
        return [row], f"{words}, {row['seconds_total']:.0f} s"

    data = str(shards.path(settings["data"], settings["ranks"]))
    return Piece(
        settings=[settings],
        words=_words(settings),
        arguments={"lines": [[*line, "--data", data, "--out", "{folder}/run"]]},
        keep=keep,
        diverged=lambda why: [{**made, "test_accuracy": None, "test_loss": None, "diverged": why}],
    )


def _outcome(outcome: Outcome) -> Row:
    """Figures of a run's summary, and curves by evaluation.

    Messages on the way are those of the whole run in proportion to the outer iterations, which all
    have about as many.
    """
    figures = summary(outcome.folder, ("epochs", *KEPT))
    rows = [row for row in metrics(outcome.folder) if row.get("test_loss") is not None]
    each = figures["vector_allreduces"] / max(figures["outer_iterations"], 1)
    curves = {name: curve(rows, name) for name in ("epoch", "test_accuracy", "test_loss")}
    curves["messages"] = [float(f"{each * row['iteration']:.5g}") for row in rows]
    return {**figures, "curves": curves}


def _words(settings: Row) -> str:
    words = [settings["data"], f"N = {settings['ranks']}", settings["optimizer"]]
    words += [f"lr {settings['lr']:g}, batch {settings['batch']}"] if "lr" in settings else []
    words += settings["arguments"]
    return ", ".join([*words, f"seed {settings['seed']}"])


@dataclass(frozen=True)
class Measure:
    """What runs are judged by.

    Attributes:
        key: of a run's summary. name, unit: in tables. scale: from the summary to the tables.
        sign: 1 where more is better, -1 where less is. form: of a value in the tables.
        chance: what guessing reaches, as in the tables.
    """

    key: str
    name: str
    unit: str
    scale: float
    sign: int
    form: str
    chance: float

    def score(self, row: Row) -> float:
        """Higher is better; -infinity of a run that diverged."""
        value = row[self.key]
        return -math.inf if value is None else self.sign * float(value)

    @property
    def points(self) -> str:
        """The unit of a difference between two."""
        return "points" if self.unit == "%" else self.unit

    def shown(self, row: Row) -> float | None:
        """The value of a run in the tables; None where it diverged."""
        value = row[self.key]
        return None if value is None else self.scale * float(value)


MEASURES = {
    "accuracy": Measure("test_accuracy", "test accuracy", "%", 100.0, 1, ".2f", 10.0),
    "loss": Measure("test_loss", "test loss", "nats", 1.0, -1, ".4f", math.log(65)),
}
