"""The loop: batches, outer iterations, evaluation, metrics, checkpoints, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from apts_mpi.checkpoints.folder import Checkpoints
from apts_mpi.comm.communicator import CHECKPOINT, STOP, Comm
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.method.iteration import Iteration
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import FORWARD, SHARE
from apts_mpi.training import run_state
from apts_mpi.training.build import build
from apts_mpi.training.evaluation import Evaluator
from apts_mpi.training.iterating import Iterating
from apts_mpi.training.loggers import open_loggers
from apts_mpi.training.progress import Lap, Progress
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.run_directory import open_run
from apts_mpi.training.run_state import Before
from apts_mpi.training.samples import spread, task_of
from apts_mpi.training.signals import StopSignals
from apts_mpi.training.summary import summarise

REPLICA_CHECK_EVERY = 50  # outer iterations
Heard = Callable[[dict[str, Any], Lap, Lap], object]


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
        before = before or Before()
        self._born = time.monotonic() - before.seconds
        self.comm, self.progress, self.phase = comm, Progress(), "the start"
        self.built = run = build(config, comm, resumed)
        if resumed is not None:
            self.progress, seconds = run_state.restore(run, resumed)
            self._started -= seconds
        run_state.rehearse(run, self.progress)
        for each in run.subdomains:
            each.follow()
        done = self.progress.iterations
        stand = done - (before.row is not None)  # rows of the metrics
        self.directory, self.checkpoints, self.best = open_run(
            run.config,
            comm,
            resumed,
            threads=run.placement.threads,
            done=done,
            rows=stand,
            again=bool(before.losses),
            say=run.console.say,
        )
        self._logs = open_loggers(
            run.config,
            comm,
            self.directory.path,
            run=self.checkpoints.run,
            done=stand,
            splits=list(run.judged),
            say=run.console.say,
        )
        self._length = run.config, run.samples  # what it follows from
        what = run.network, run.optimizer, run.statistics, comm, task_of(run.info), run.criterion
        self._evaluator = Evaluator(*what)
        self._iterating, self._stopping = Iterating(run), False
        self._signals, self._reason = signals, ""  # why this rank wants to stop
        # The row of the last iteration, and whether that is still to be evaluated and written.
        self._row, self._pending, self._losses = before.row, before.pending, before.losses
        self._lap = dict.fromkeys(comm.clock.seconds, 0.0)
        if self._row is not None and not self._pending:
            self.directory.row(self._row)
            self._logs.log(self._row)
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
            self._evaluator.refresh(self.progress.iterations)
            failed = checkpoints.save(
                self.progress.iterations,
                *run_state.states(self.built, self.progress, self.seconds()),
            )
        if failed is not None:
            last = checkpoints.last
            kept = f"the last one is {last}" if last else "there is none yet"
            self.built.console.say(f"warning: no checkpoint could be written: {failed}; {kept}")
        return failed

    def run(self, heard: Heard = lambda row, lap, rest: None) -> dict[str, Any]:
        """Train; returns the summary, the same on every rank.

        Args:
            heard: called after every outer iteration with its row of the metrics, this rank's
                seconds by phase, and those of what came between it and the next: evaluation,
                checks, writing.
        """
        begun = self._row if self._pending else None
        self.built.console.start(self.progress.part(*self._length), self.progress.losses, begun)
        self._checkpointed = time.monotonic()
        while self._pending or not self.progress.done(*self._length):
            if not self._pending:
                if self.comm.rank == 0:  # whose clock is everybody's
                    self._ask_in_time(self._checkpointed)
                self.comm.clock.lap()
                number = self.progress.iterations + 1
                self.phase = f"iteration {number}"
                sent = self.comm.traffic.bytes_allreduced
                result = self._iterating.iterate(number, self.progress.work_done(*self._length))
                self._lap = self.comm.clock.lap()
                sent = self.comm.traffic.bytes_allreduced - sent
                self._row, self._pending = self._count(result, self._lap, sent), True
                self._remember()
            assert self._row is not None
            self._conclude(self._row, heard)
        self.built.console.stop()
        return self._finish()

    def _conclude(self, row: dict[str, Any], heard: Heard) -> None:
        """All that follows an iteration: evaluation, its row, checks, a checkpoint, the stop."""
        self.phase = f"evaluation or writing after iteration {self.progress.iterations}"
        last = self.progress.done(*self._length)
        since = row["epoch"] - self.progress.evaluated_at
        seen = "test_loss" in row  # by ranks of which one has died since
        if not seen and (last or since >= (self.built.config.evaluate_every or 0.0)):
            self._judge(row)
            last = self.progress.done(*self._length)
        self.directory.row(row)
        self._logs.log(row)
        self.built.console.progress(row, self.progress.part(*self._length), last=last)
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

    def _ask_in_time(self, checkpointed: float) -> None:
        """Ask for what the clock demands; the iteration's messages bring it to all ranks."""
        now, (_, seconds) = time.monotonic(), self.built.config.checkpoint_interval()
        if seconds is not None and now - checkpointed >= seconds:
            self.comm.wish(CHECKPOINT)
        limit = self.built.config.max_seconds
        if limit is not None and now - self._born >= limit:
            self._reason = f"--max-seconds {limit:g}"
            self.comm.wish(STOP)

    def _judge(self, row: dict[str, Any]) -> None:
        """Evaluate on the test and validation samples of all ranks, after the row's iteration."""
        figures = self._evaluator.judge(self.built.judged, self.progress.iterations)
        self.progress.evaluated(row, figures)
        row.update(self.progress.losses)

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
                self._judge(self._row)
            self.directory.row(self._row)
            self._logs.log(self._row)
        left = f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"
        self._end_early(f"{left} left, --min-ranks is {ranks}: stopped", self.checkpoint())

    def close(self) -> None:
        """Close what is open, of a run that breaks off."""
        self.built.console.stop()
        self._logs.close(ended=False)
        self.directory.close()

    def _end_early(self, why: str, failed: str | None) -> NoReturn:
        self.close()
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
        if progress.out_of_patience(run.config):
            run.console.say(
                f"ends early: no better on the validation samples in {progress.unimproved} "
                f"evaluations (--patience {run.config.patience})"
            )
        # As many as take a tenth of the run, and no fewer than 1000.
        most = run.config.evaluate_samples or run.samples
        most = min(max(int(SHARE * FORWARD * progress.work), 1000), most)
        train = spread([each.samples for each in run.subdomains], most, run.comm)
        results = {
            **progress.totals(run.samples),
            "train_loss": self._evaluator.evaluate(train, progress.iterations)["loss"],
            "train_loss_samples": train[0].total,
            **progress.losses,
            **({"lost_ranks": self._losses} if self.comm.elastic else {}),
        }
        summary = summarise(run, seconds_total=self.seconds(), results=results)
        self.directory.finish(summary)
        self._logs.close(ended=True)
        if run.trace is not None:
            run.trace.finish()  # last, so that nothing is lost where it fails
        return summary
