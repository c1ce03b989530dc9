"""The loop: batches, outer iterations, evaluation, metrics, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from apts_mpi.checkpoints.folder import Checkpoints
from apts_mpi.comm import replicas
from apts_mpi.comm.communicator import CHECKPOINT, STOP, Comm
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.files.streams import write_error
from apts_mpi.method.iteration import Iteration
from apts_mpi.networks.evaluating import kept
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import FORWARD, SHARE
from apts_mpi.training import run_state
from apts_mpi.training.build import build
from apts_mpi.training.evaluation import evaluate
from apts_mpi.training.loggers import open_loggers
from apts_mpi.training.progress import Lap, Progress
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.run_directory import open_run
from apts_mpi.training.samples import Samples, spread, task_of
from apts_mpi.training.signals import StopSignals
from apts_mpi.training.summary import summarise

REPLICA_CHECK_EVERY = 50  # outer iterations


@dataclass(frozen=True)
class Before:
    """What the same run on more ranks has left, some of which have died.

    Attributes:
        row: of the metrics, the last one; None of a run that starts anew. pending: whether it is
            still to be evaluated and written.
        seconds: that the run has lived. losses: of ranks, for the summary.
    """

    row: dict[str, Any] | None
    pending: bool
    seconds: float
    losses: list[dict[str, Any]]


class Training:
    """One run on this rank, from settings to summary; every rank makes one and calls ``run``.

    Args:
        config: the same on every rank, or the ranks end with a line that says what differs.
        comm: the ranks.
        resumed: what the run resumes; the settings are then what ``resuming`` makes them.
        signals: that ask the ranks to stop, to say which one it was.
        before: where ranks have died, what the run on more of them has left.

    Attributes:
        built: what the run is made of. progress: how far it is. phase: what it does, in words.
        moment: where the ranks may outlive others, what all have alike after the last iteration.
        directory: what it leaves behind. checkpoints: in it. best: of them, the one that is best
            on the validation samples.

    Raises:
        AgreedError: on every rank, for bad input on any of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        comm: Comm,
        *,
        resumed: Resumed | None = None,
        signals: StopSignals | None = None,
        before: Before | None = None,
    ) -> None:
        self._started = time.perf_counter()  # less what the run took before it was resumed
        self._born = time.monotonic() - (before.seconds if before else 0.0)
        self.comm, self.progress, self.phase = comm, Progress(), "the start"
        self.built = run = build(config, comm, resumed)
        if resumed is not None:
            self.progress, seconds = run_state.restore(run, resumed)
            self._started -= seconds
        run_state.rehearse(run, self.progress)
        for each in run.subdomains:
            each.follow()
        self.directory, self.checkpoints, self.best = open_run(
            run.config,
            comm,
            resumed,
            threads=run.placement.threads,
            done=self.progress.iterations,
            rewritten=int(before is not None and before.row is not None),
            again=before is not None,
            say=run.console.say,
        )
        self._logs = open_loggers(
            run.config,
            comm,
            self.directory.path,
            run=self.checkpoints.run,
            done=self.progress.iterations,
            splits=list(run.judged),
            say=run.console.say,
        )
        self._statistics_at = -1  # the iteration that BatchNorm's statistics are of
        self._warned_strange = self._stopping = False
        self._signals, self._reason = signals, ""  # why this rank wants to stop
        self._row = before.row if before else None  # of the last iteration
        self._lap = dict.fromkeys(comm.clock.seconds, 0.0)
        self._pending = before is not None and before.pending  # whether it is to be dealt with
        self._losses = before.losses if before else []
        if self._row is not None and not self._pending:
            self.directory.row(self._row)
        self._remember()

    def seconds(self) -> float:
        """That the run has taken."""
        return time.perf_counter() - self._started

    def _remember(self) -> None:
        """Keep what all ranks have alike before an iteration that not all may complete."""
        if self.comm.elastic:
            self.moment = run_state.Moment.of(self.built)

    def unfinished(self) -> dict[str, Any]:
        """What those that are left need besides the state, in plain values."""
        return {
            "row": self._row,
            "pending": self._pending,
            "stopping": self._stopping,
            "seconds": time.monotonic() - self._born,
        }

    def checkpoint(self) -> str | None:
        """Write one; every rank calls it. None, or on every rank the line of what failed."""
        with self.comm.clock.phase("checkpoint"):
            self.directory.sync()  # so that the rows reach as far as the checkpoint
        return self._save(self.checkpoints)

    def _save(self, checkpoints: Checkpoints) -> str | None:
        with self.comm.clock.phase("checkpoint"):
            self._refresh_statistics()
            failed = checkpoints.save(
                self.progress.iterations,
                *run_state.states(self.built, self.progress, self.seconds()),
            )
        if failed is not None:
            last = checkpoints.last
            kept = f"the last one is {last}" if last else "there is none yet"
            self.built.console.say(f"warning: no checkpoint could be written: {failed}; {kept}")
        return failed

    def run(
        self, heard: Callable[[dict[str, Any], Lap, Lap], object] = lambda row, lap, rest: None
    ) -> dict[str, Any]:
        """Train; returns the summary, the same on every rank.

        Args:
            heard: called after every outer iteration with its row of the metrics, this rank's
                seconds by phase, and those of what came between it and the next: evaluation,
                checks, writing.
        """
        self.built.console.start(self._part(), self.progress.losses)
        self._checkpointed = time.monotonic()
        while self._pending or not self._done():
            if not self._pending:
                if self.comm.rank == 0:  # whose clock is everybody's
                    self._ask_in_time(self._checkpointed)
                self.comm.clock.lap()
                self.phase = f"iteration {self.progress.iterations + 1}"
                sent = self.comm.traffic.bytes_allreduced
                result = self._iterate()
                self._lap = self.comm.clock.lap()
                sent = self.comm.traffic.bytes_allreduced - sent
                self._row, self._pending = self._count(result, self._lap, sent), True
                self._remember()
            assert self._row is not None
            self._conclude(self._row, heard)
        self.built.console.stop()
        return self._finish()

    def _conclude(
        self, row: dict[str, Any], heard: Callable[[dict[str, Any], Lap, Lap], object]
    ) -> None:
        """All that follows an iteration: evaluation, its row, checks, a checkpoint, the stop."""
        self.phase = f"evaluation or writing after iteration {self.progress.iterations}"
        last = self._done()
        since = row["epoch"] - self.progress.evaluated_at
        if last or since >= (self.built.config.evaluate_every or 0.0):
            self.progress.evaluated(row, self.evaluate())
            row.update(self.progress.losses)
            last = self._done()
        self.directory.row(row)
        self._logs.log(row)
        self.built.console.progress(row, self._part(), last=last)
        self._stopping = self.comm.wished(STOP) and not last
        writes, failed = self._due(last) or self._stopping, None
        best = self.progress.evaluated_at == row["epoch"] and self.progress.unimproved == 0
        best = best and any(self.built.config.checkpoint_interval())
        # Before every checkpoint, so that none has parameters that are not every rank's.
        if writes or best or last or self.progress.iterations % REPLICA_CHECK_EVERY == 0:
            self.comm.check_replicas(self.built.network.vector)
        if writes:
            failed = self.checkpoint()
            self._checkpointed = time.monotonic()
        if best:
            self._save(self.best)
        heard(row, self._lap, self.comm.clock.lap())
        if self._stopping:
            self._stop(failed)
        self._pending = False

    def _done(self) -> bool:
        """Whether there is no outer iteration left to do; the same on every rank."""
        config, progress = self.built.config, self.progress
        assert config.epochs is not None, "completed settings have them"
        enough = config.iterations is not None and progress.iterations >= config.iterations
        enough = enough or progress.work / self.built.samples >= config.epochs
        return progress.converged or enough or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        """Whether the validation samples have shown no better network for ``--patience``."""
        patience, since = self.built.config.patience, self.progress.unimproved
        return patience is not None and since is not None and since >= patience

    def _work_done(self) -> float:
        """Of ``--epochs``, 0 to 1; the same on every rank."""
        epochs = self.built.config.epochs or math.inf
        return min(self.progress.work / self.built.samples / epochs, 1.0)

    def _part(self) -> float:
        """Of the run that is done, 0 to 1, as far as it can be known."""
        iterations = self.built.config.iterations or math.inf
        return min(max(self._work_done(), self.progress.iterations / iterations), 1.0)

    def _ask_in_time(self, checkpointed: float) -> None:
        """Ask for what the clock demands; the iteration's messages bring it to all ranks."""
        now, (_, seconds) = time.monotonic(), self.built.config.checkpoint_interval()
        if seconds is not None and now - checkpointed >= seconds:
            self.comm.wish(CHECKPOINT)
        limit = self.built.config.max_seconds
        if limit is not None and now - self._born >= limit:
            self._reason = f"--max-seconds {limit:g}"
            self.comm.wish(STOP)

    def _due(self, last: bool) -> bool:
        """Whether to write a checkpoint after this iteration; the same on every rank."""
        iterations, seconds = self.built.config.checkpoint_interval()
        wished = self.comm.wished(CHECKPOINT)
        if iterations is not None:
            return last or self.progress.iterations % iterations == 0
        return seconds is not None and (last or wished)

    def _stop(self, failed: str | None) -> NoReturn:
        """End the run before its end, all ranks together; ``failed``: what its checkpoint did."""
        comm, caught = self.comm, self._signals.caught if self._signals else None
        own = f"{caught} on rank {comm.rank} ({comm.host})" if caught else self._reason
        reason = comm.first_error(InputError(own) if own else None) or "a rank's wish"
        self.built.console.stop()
        self._logs.close(ended=False)
        if self.built.trace is not None:
            try:
                self.built.trace.finish()
            except AgreedError as error:  # the checkpoint is what counts
                self.built.console.say(f"warning: {error}")
        self._end_early(f"stopped by {reason}", failed)

    def stop_below(self, ranks: int) -> NoReturn:
        """End the run with a checkpoint, as fewer than so many ranks are left."""
        if self._pending and self._row is not None:
            if not self.progress.losses:
                self.progress.evaluated(self._row, self.evaluate())
                self._row.update(self.progress.losses)
            self.directory.row(self._row)
        left = f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"
        self._end_early(f"{left} left, --min-ranks is {ranks}: stopped", self.checkpoint())

    def _end_early(self, why: str, failed: str | None) -> NoReturn:
        line = f"{why} after iteration {self.progress.iterations}"
        if failed is not None:
            raise AgreedError(f"{line}; no checkpoint could be written: {failed}", status=1)
        how = f"resume with --resume {self.directory.path}"
        raise AgreedError(f"{line}, checkpoint {self.checkpoints.last}; {how}", status=3)

    def _count(self, result: Iteration, lap: Lap, nbytes: int) -> dict[str, Any]:
        """Take note of what an iteration did; its row of the metrics."""
        run, units = self.built, self.built.criterion.units
        row = self.progress.count(
            result,
            lap,
            samples=run.samples,
            passes=run.subdomains[0].batches.passes,
            nbytes=nbytes,
            square=None if units is None else units.square,
        )
        if self.progress.converged:
            self.built.console.say("the gradient is zero: training has converged")
        return row

    def _finish(self) -> dict[str, Any]:
        """Summary and trace of a run that has come to its end."""
        run, progress, self.phase = self.built, self.progress, "the last evaluation or the summary"
        if self._out_of_patience():
            run.console.say(
                f"ends early: no better on the validation samples in {progress.unimproved} "
                f"evaluations (--patience {run.config.patience})"
            )
        train = spread(
            [each.samples for each in run.subdomains], self._judged_of_training(), run.comm
        )
        results = {
            **progress.totals(run.samples),
            "passes": run.subdomains[0].batches.passes,
            "train_loss": self._evaluate(train)["loss"],
            "train_loss_samples": train[0].total,
            **progress.losses,
            "evaluate_samples": run.config.evaluate_samples,
            # What is best on the test samples would be chosen by them.
            "best_test_accuracy": None,
        }
        if self.comm.elastic:
            results["lost_ranks"] = self._losses
        summary = summarise(run, seconds_total=self.seconds(), results=results)
        self.directory.finish(summary)
        self._logs.close(ended=True)
        if run.trace is not None:
            run.trace.finish()  # last, so that nothing is lost where it fails
        return summary

    def _judged_of_training(self) -> int:
        """Of how many training samples the loss is evaluated at the end: as many as take a tenth of
        the run, and no fewer than 1000."""
        most = self.built.config.evaluate_samples or self.built.samples
        return min(max(int(SHARE * FORWARD * self.progress.work), 1000), most)

    def _iterate(self) -> Iteration:
        comm = self.comm
        for each in self.built.subdomains:
            each.strange = None
        try:
            with comm.clock.phase("algebra", f"iteration {self.progress.iterations + 1}"):
                draws = [each.draw for each in self.built.subdomains]
                self.built.optimizer.done = self._work_done()
                result = self.built.optimizer.iterate(*draws)
        except FloatingPointError as error:  # the same on every rank
            line = str(error)
            strange = self._strange()
            (many,) = comm.sum_scalars([float(strange is not None)])
            if many < comm.size:  # bad samples, rather than steps that are too long
                own = f"a loss of rank {comm.rank} on {comm.host} is {strange}"
                who = comm.first_error(InputError(own) if strange is not None else None)
                line += f" ({who})" if who else ""
            raise AgreedError(line, status=1) from error
        strange = self._strange()
        if strange is not None and not self._warned_strange:
            self._warned_strange = True  # once a run
            line = (
                f"apts_mpi: warning: rank {comm.rank} on {comm.host}: a loss of iteration "
                f"{self.progress.iterations + 1} is {strange} and was passed over; look for "
                "bad samples in its part if it comes again\n"
            )
            write_error(line)
        return result

    def _strange(self) -> float | None:
        """A loss of this rank's subdomains that was not finite in the last iteration."""
        return next((s.strange for s in self.built.subdomains if s.strange is not None), None)

    def _refresh_statistics(self) -> None:
        """Make BatchNorm's running statistics those of the network that is evaluated now."""
        if self._statistics_at != self.progress.iterations:
            self._statistics_at = self.progress.iterations
            with self.built.optimizer.averaged(), self._as_saved():
                self.built.statistics.refresh()

    def evaluate(self) -> dict[str, float | None]:
        """Figures on the test and validation data, over all ranks' parts: "test_loss", ..."""
        return {
            f"{split}_{name}": value
            for split, samples in self.built.judged.items()
            for name, value in self._evaluate([samples]).items()
        }

    def _evaluate(self, parts: Sequence[Samples]) -> dict[str, float | None]:
        """Figures over all ranks' parts; every rank evaluates its own."""
        with self.comm.clock.phase("evaluation"):
            self._refresh_statistics()
        with self.comm.clock.phase("evaluation"), self.built.optimizer.averaged(), self._as_saved():
            run = self.built
            return evaluate(run.network, parts, run.comm, task_of(run.info), run.criterion)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Within, the buffers are those of a checkpoint, rank 0's; afterwards each rank's own.

        So that a run goes its way however often it is evaluated, and the figures are those of its
        checkpoints. BatchNorm's statistics, made for that, stay.
        """
        others = self.built.statistics.others()
        with kept(self.built.module, others):
            replicas.take_rank_zeros(others, self.comm, logged=False)
            yield
