"""N = 16, 32 and 64 subdomains as real MPI ranks, and the same ones on a single rank.

A small network on MNIST, a few outer iterations. The two must train alike: reported are how far
apart their losses are, and what the ranks cost on this machine, where they share its cores: start,
seconds per iteration, and the part of them that goes into waiting and messages. The quality as N
grows is in the set "many" of beyond.toml. Writes large_n.md and large_n.jsonl; runs that are there
are not run again.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import Shards
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import MNIST, several, timeout
from benchmarks.harness.results import Row, in_order, metrics, summary
from benchmarks.harness.sections import Section, Table
from benchmarks.harness.worker import PROGRAM

HIDDEN, ITERATIONS = "32", 6
NAMES = (
    *("parameters", "test_loss", "test_accuracy", "vector_allreduces", "versions"),
    *("bytes_allreduced", "threads_per_rank"),
)


def plan(session: Session) -> Rounds:
    """A job per number of ranks: its start is in what is reported."""
    shards = Shards(session.folder, mnist=session.options.mnist)
    jobs = [_job(n, ranks, shards) for n in session.options.ranks for ranks in (1, n)]
    for job in session.missing(jobs):
        shards.make("mnist", job.pieces[0].settings[0]["subdomains"])
    yield jobs


def _job(n: int, ranks: int, shards: Shards) -> Job:
    flags = ["train", "--data", str(shards.path("mnist", n)), "--hidden", HIDDEN, "--threads", "1"]
    flags += ["--iterations", str(ITERATIONS), "--evaluate-every", "1e9", "--device", "cpu"]
    flags += ["--checkpoint-every", "off", "--out", "{folder}/run"]
    flags += ["--subdomains-per-rank", str(n // ranks)]
    piece = Piece(
        settings=[dict(subdomains=n, ranks=ranks)],
        words=f"{n} subdomains on {ranks} ranks",
        arguments={"lines": [flags]},
        keep=keep,
    )
    return Job(task=PROGRAM, ranks=ranks, pieces=[piece])


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """Seconds from the start of the job, and by iteration what it trained and took."""
    rows = metrics(outcome.folder)
    row = {
        "seconds": outcome.seconds,
        "losses": [row["loss"] for row in rows],
        "radii": [row["radius"] for row in rows],
        "iteration_seconds": [row["seconds"] for row in rows],
        "message_seconds": [row["seconds_communication"] + row["seconds_wait"] for row in rows],
        **summary(outcome.folder, NAMES),
    }
    return [row], f"{outcome.seconds:.0f} s"


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    rows = in_order(rows, subdomains=None, ranks=None)
    alone = {row["settings"]["subdomains"]: row for row in rows if row["settings"]["ranks"] == 1}
    header = ["subdomains", "ranks", "test accuracy, %", "losses apart, relative", "whole run, s"]
    header += ["iteration, s", "of it waiting and messages, %"]
    return Section(
        "Many subdomains: as many ranks, and one",
        [
            f"MNIST, one hidden layer of {HIDDEN}, {ITERATIONS} outer iterations, default "
            "settings. Losses apart: the largest relative difference between the losses of the "
            "iterations and those of the same subdomains on one rank; they differ by the order of "
            f"summation alone. The ranks share {rows[0]['cores']} cores: times say what that "
            "costs, not how it scales.",
            Table("", header, [_line(row, alone) for row in rows], text=0),
            tables.foot(rows, "large_n"),
        ],
    )


def _line(row: Row, alone: dict[int, Row]) -> list[Any]:
    n, ranks = row["settings"]["subdomains"], row["settings"]["ranks"]
    apart = "-"
    if ranks > 1 and n in alone:
        pairs = zip(row["losses"], alone[n]["losses"], strict=True)
        apart = f"{max(abs(a - b) / abs(b) for a, b in pairs):.1e}"
    each = sum(row["iteration_seconds"]) / len(row["iteration_seconds"])
    share = sum(row["message_seconds"]) / max(sum(row["iteration_seconds"]), 1e-9)
    return [
        *(n, ranks, f"{100 * row['test_accuracy']:.2f}", apart, f"{row['seconds']:.0f}"),
        *(f"{each:.2f}", f"{100 * share:.0f}"),
    ]


COMMAND = Command(
    name="large_n",
    options=(
        several("--ranks", (16, 32, 64), "", least=2),
        MNIST,
        timeout(900.0),
    ),
    plan=plan,
    section=section,
)
