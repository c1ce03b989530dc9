"""The loop: batches, outer iterations, evaluation, metrics, checkpoints, and when to stop."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import nn

from apts_mpi import networks
from apts_mpi.checkpoints.folder import FOLDER, Checkpoint, Checkpoints, set_aside
from apts_mpi.comm import gpu_aware, replicas
from apts_mpi.comm.clock import COMMUNICATION
from apts_mpi.comm.communicator import CHECKPOINT, STOP, Comm
from apts_mpi.comm.trace import Trace
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.errors import AgreedError, InputError, writing
from apts_mpi.files.streams import write_error
from apts_mpi.method.iteration import Iteration
from apts_mpi.networks.evaluating import kept
from apts_mpi.networks.losses import Criterion, balanced, criterion
from apts_mpi.networks.task import looks_channels_last
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.declaration import AUTO
from apts_mpi.settings.defaults import completed
from apts_mpi.settings.toml import to_toml
from apts_mpi.training import local_steps as pacing
from apts_mpi.training import resuming, run_state
from apts_mpi.training.batch_norm import RunningStatistics
from apts_mpi.training.console import Console
from apts_mpi.training.device import place
from apts_mpi.training.evaluation import class_counts, evaluate
from apts_mpi.training.flat_network import CHUNK, flat_network
from apts_mpi.training.optimizer import optimizer
from apts_mpi.training.provenance import code_digest, versions
from apts_mpi.training.run_directory import RunDirectory, default_out
from apts_mpi.training.samples import Samples, Streamed, load, task_of, units_of
from apts_mpi.training.signals import StopSignals
from apts_mpi.training.subdomain import Subdomain
from apts_mpi.training.summary import summarise
from apts_mpi.training.trial import try_out

Lap = dict[str, float]  # seconds by phase

REPLICA_CHECK_EVERY = 50  # outer iterations


@dataclass
class Progress:
    """How far a run is; the same on every rank.

    Attributes:
        iterations: outer ones done, accepted of them so many. work: gradient evaluations.
        evaluated_at: epoch of the last evaluation. losses: what it gave, and the best so far that
            validation samples gave, with its epoch, where there are any.
        converged: whether there is nothing left to do.
    """

    iterations: int = 0
    accepted: int = 0
    work: float = 0.0
    evaluated_at: float = -math.inf
    losses: dict[str, float | None] = field(default_factory=dict)
    converged: bool = False


class Training:
    """One run on this rank, from settings to summary; every rank makes one and calls ``run``.

    Args:
        config: the same on every rank, or the ranks end with a line that says what differs.
        comm: the ranks.
        resumed: the checkpoint to go on from; the settings are then what ``resuming`` makes them.
        signals: that ask the ranks to stop, to tell which one it was.

    Raises:
        AgreedError: on every rank, for bad input on any of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        comm: Comm,
        *,
        resumed: Checkpoint | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        self.started = time.perf_counter()  # less what the run took before it was resumed
        self._born = time.monotonic()
        self.comm = comm
        self.clock = comm.clock
        self.console = Console(comm)
        settings = to_toml(config).splitlines()
        facts = {**versions(), "code": code_digest()}
        comm.require_same("settings", settings + [f"{k} {v}" for k, v in facts.items()])
        self.code = facts["code"]
        self.given = to_toml(config) if resumed is None else resuming.ever_given(resumed, config)
        placement = place(config, comm, self.console.say)
        self.device, self.threads = placement.device, placement.threads
        self.oversubscribed = placement.oversubscribed
        if config.hierarchical:
            comm.join_by_hosts()
        if config.compress != "none" and comm.parts < 2:
            alone = "one host" if comm.size > 1 else "one rank"
            self.console.say(
                f"--compress {config.compress}: {alone} has none to exchange with, so that nothing "
                "is rounded"
            )
        if config.gpu_aware and config.compress != "none":
            self.console.say("--gpu-aware: messages go by the host, where they are compressed")
        elif config.gpu_aware:
            gpu_aware.enable(comm, self.device, self.console.say)
        # From here on, as what it cannot do is agreed on.
        self.trace = Trace(config.trace, comm, self.console.say) if config.trace else None
        with self.clock.phase("data", "load"):
            shards = None if resumed is None else resumed.common["data"]["shards"]
            self.info, samples = load(
                config.data,
                comm,
                self.console.say,
                device=self.device,
                shards=shards,
                subdomains=config.subdomains_per_rank,
                context=config.context,
                stream=config.stream,
            )
        # The splits that the network is judged on, each held as one part.
        self.judged = {name: each[0] for name, each in samples.items() if name != "train"}
        self.task, self.samples = task_of(self.info), samples["train"][0].total
        with comm.together():
            self.config = config = completed(config, comm.size, self.samples, task=self.task.kind)
        self.units = units_of(self.info, self.device)
        if resumed is not None and not resuming.is_standardised(resumed):
            self.units = None  # its network knows the targets as they are
        self.module, self.criterion = self._built(samples["train"])
        if self.criterion.own and self.units is not None:
            self.console.say(
                "the network's own loss is given the targets in their own units, not standardised: "
                f"{self.units}"
            )
        self.network = flat_network(self.module, self.criterion, self.task, config)
        self.subdomains = self._cut(samples["train"])
        self.seconds_pacing = 0.0  # what finding the local steps has taken
        self.statistics = RunningStatistics(
            self.network, samples["train"], batch=config.batch or CHUNK, comm=comm
        )
        self._statistics_at = -1  # the iteration that they are of
        self._rehearse(samples["train"])
        if config.local_steps == AUTO:
            start = time.perf_counter()
            self.config = config = self._paced(config)
            self.seconds_pacing = time.perf_counter() - start
        self.optimizer = optimizer(config, self.network, comm)
        self.progress = Progress()
        if resumed is not None:
            run_state.restore(self, resumed)
        run_state.rehearse(self)
        for each in self.subdomains:
            each.follow()
        self.directory, self.checkpoints = self._open(resumed)
        self._told_strange = False
        self._signals, self._reason = signals, ""  # why this rank wants to stop

    # ---- set-up ----------------------------------------------------------------------------

    def _built(self, parts: list[Samples]) -> tuple[nn.Module, Criterion]:
        """The network, on this rank's device, and its criterion."""
        config, comm = self.config, self.comm
        with comm.together():
            module, own = networks.build(config.network, self.task, config.sizes, seed=config.seed)
            weights: Sequence[float] | None = config.weights_given()
            if config.class_weights == "balanced" and self.task.kind != "classification":
                raise InputError(
                    f"--class-weights balanced: {self.task.kind} has no classes to weigh"
                )
        counts = None
        if config.class_weights == "balanced":
            counts = class_counts(parts, self.task.outputs, comm)
        with comm.together():
            if counts is not None:
                weights = balanced(counts)
            made = criterion(
                self.task,
                smoothing=config.label_smoothing,
                weights=weights,
                own=own,
                units=self.units,
                device=self.device,
            )
        module = module.to(self.device)
        # What is trained, the optimizer takes from rank 0.
        replicas.take_rank_zeros(replicas.untrained(module), self.comm)
        return module, made

    def _rehearse(self, parts: list[Samples]) -> None:
        """Try the user's network on samples as it will be trained and evaluated; nothing stays.

        Also one of this program's where a minibatch of one sample may be none to it.
        """
        config = self.config
        if config.network in networks.NETWORKS and config.normalization != "batch":
            return
        with self.comm.together():
            try:
                told = try_out(
                    self.network,
                    self.criterion,
                    training=[(each.samples, each.batches.smallest) for each in self.subdomains],
                    evaluation=[*parts, *self.judged.values()],
                )
            except InputError as error:
                what = str(error).removeprefix("--network: ")
                what = f"--network {config.network}: {what} (rank {self.comm.rank})"
                raise InputError(what) from error
        if told:
            self.console.say(f"warning: --network {config.network}: {told}")

    def _cut(self, parts: list[Samples]) -> list[Subdomain]:
        """The subdomains of this rank."""
        config, comm = self.config, self.comm
        shape = self.task.sample_shape
        with comm.together():
            if config.augmentations and len(shape) != 3:
                raise InputError(
                    f"--augment {config.augment}: is for images (channels, height, width), not "
                    f"samples {shape}"
                )
            if config.augmentations and looks_channels_last(shape):
                raise InputError(
                    f"--augment {config.augment}: is for images (channels, height, width), and "
                    f"samples {shape} look like channels last; make the shards again with `shard "
                    "arrays --channels-last on`"
                )
        largest = np.array([float(max(map(len, parts)))])
        comm.maximum(largest)
        return [
            Subdomain(
                self.network,
                samples,
                Batches(
                    len(samples),
                    largest=int(largest[0]),
                    batch=config.batch,
                    overlap=config.overlap,
                    seed=config.seed,
                    rank=comm.rank * len(parts) + k,
                    window=samples.stream.window if isinstance(samples, Streamed) else None,
                ),
                self.clock,
                augment=config.augmentations,
                key=(config.seed, comm.rank * len(parts) + k),
            )
            for k, samples in enumerate(parts)
        ]

    def _paced(self, config: TrainConfig) -> TrainConfig:
        """The settings with as many local steps as messages and gradients cost here."""
        assert config.batch is not None, "completed settings have one"
        x, y = next(self.subdomains[0].samples.blocks(config.batch))
        network = self.network
        with kept(self.module):
            message, gradient = pacing.measure(
                self.comm, network.vector, lambda: len(y) and network.loss_and_gradient(x, y)
            )
        many = len(self.subdomains)
        steps = pacing.local_steps(
            message=message,
            gradient=many * gradient,  # a rank's subdomains take their steps one after another
            samples=self.samples,
            subdomains=self.comm.size * many,
            batch=config.batch,
        )
        self.console.say(
            f"{steps} local steps of {config.batch} samples: an iteration's messages take "
            f"{1e3 * message:.3g} ms, a gradient {1e3 * gradient:.3g} ms"
        )
        return dataclasses.replace(config, local_steps=steps)

    def _open(self, resumed: Checkpoint | None) -> tuple[RunDirectory, Checkpoints]:
        """The run directory and the checkpoints in it."""
        config, comm, begun = self.config, self.comm, None
        run = comm.broadcast_text(uuid.uuid4().hex) if resumed is None else resumed.run
        if resumed is not None:
            begun = resuming.run_directory(resumed)
        if config.out is None and resumed is not None and begun is None:
            raise AgreedError(f"--resume {resumed.path}: lies in no run directory; give --out")
        path = Path(config.out) if config.out else begun or default_out(config, comm)
        # Complete, so that the run repeats from it; where to write is the next run's own to choose.
        complete = dataclasses.replace(
            config, out=None, resume=None, trace=None, threads=self.threads
        )
        if comm.watch is not None:
            comm.watch.directory = path
        directory = RunDirectory(
            path,
            complete,
            comm,
            warn=self.console.say,
            shared=config.resume == "auto",
            begun=begun,
            rows=self.progress.iterations,
        )
        if resumed is not None:
            with comm.together(), writing(str(path / FOLDER)):
                done = self.progress.iterations
                names = [] if comm.rank else set_aside(path / FOLDER, done)
            for name in names:
                self.console.say(f"{path / FOLDER / name}: set aside, as the run goes on before it")
        return directory, Checkpoints(path / FOLDER, comm, keep=config.keep, run=run)

    # ---- the loop --------------------------------------------------------------------------

    def checkpoint(self) -> str | None:
        """Write one; every rank calls it. None, or on every rank the line of what failed."""
        with self.clock.phase("checkpoint"):
            self._refresh_statistics()
            self.directory.sync()  # so that the rows reach as far as the checkpoint
            failed = self.checkpoints.save(self.progress.iterations, *run_state.states(self))
        if failed is not None:
            last = self.checkpoints.last
            kept = f"the last one is {last}" if last else "there is none yet"
            self.console.say(f"warning: no checkpoint could be written: {failed}; {kept}")
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
        self.console.start(self.config.epochs or 0.0)
        checkpointed = time.monotonic()
        while not self._done():
            if self.comm.rank == 0:  # whose clock is everybody's
                self._ask_in_time(checkpointed)
            self.clock.lap()
            result = self._iterate()
            lap = self.clock.lap()
            row = self._count(result, lap)
            last = self._done()
            if last or row["epoch"] - self.progress.evaluated_at >= self.config.evaluate_every:
                row.update(self._evaluated(row["epoch"]))
            self.directory.row(row)
            self.console.progress(row)
            stop, failed = self.comm.wished(STOP) and not last, None
            writes = self._due(last) or stop
            # Before every checkpoint, so that none has parameters that are not every rank's.
            if writes or last or self.progress.iterations % REPLICA_CHECK_EVERY == 0:
                self.comm.check_replicas(self.network.vector)
            if writes:
                failed = self.checkpoint()
                checkpointed = time.monotonic()
            heard(row, lap, self.clock.lap())
            if stop:
                self._stop(failed)
        self.console.stop()
        return self._finish()

    def _done(self) -> bool:
        """Whether there is no outer iteration left to do; the same on every rank."""
        config, progress = self.config, self.progress
        assert config.epochs is not None, "completed settings have them"
        enough = config.iterations is not None and progress.iterations >= config.iterations
        return progress.converged or enough or progress.work / self.samples >= config.epochs

    def _ask_in_time(self, checkpointed: float) -> None:
        """Ask for what the clock demands; the iteration's messages bring it to all ranks."""
        now, (_, seconds) = time.monotonic(), self.config.checkpoint_interval()
        if seconds is not None and now - checkpointed >= seconds:
            self.comm.wish(CHECKPOINT)
        limit = self.config.max_seconds
        if limit is not None and now - self._born >= limit:
            self._reason = f"--max-seconds {limit:g}"
            self.comm.wish(STOP)

    def _due(self, last: bool) -> bool:
        """Whether to write a checkpoint after this iteration; the same on every rank."""
        iterations, seconds = self.config.checkpoint_interval()
        wished = self.comm.wished(CHECKPOINT)
        if iterations is not None:
            return last or self.progress.iterations % iterations == 0
        return seconds is not None and (last or wished)

    def _stop(self, failed: str | None) -> NoReturn:
        """End the run before its end, all ranks together; ``failed``: what its checkpoint did."""
        comm, caught = self.comm, self._signals.caught if self._signals else None
        own = f"{caught} on rank {comm.rank} ({comm.host})" if caught else self._reason
        reason = comm.first_error(InputError(own) if own else None) or "a rank's wish"
        self.console.stop()
        if self.trace is not None:
            try:
                self.trace.finish()
            except AgreedError as error:  # the checkpoint is what counts
                self.console.say(f"warning: {error}")
        line = f"stopped by {reason} after iteration {self.progress.iterations}"
        if failed is not None:
            raise AgreedError(f"{line}; no checkpoint could be written: {failed}", status=1)
        how = f"go on with --resume {self.directory.path}"
        raise AgreedError(f"{line}, checkpoint {self.checkpoints.last}; {how}", status=3)

    def _count(self, result: Iteration, lap: Lap) -> dict[str, Any]:
        """Take note of what an iteration did; its row of the metrics."""
        progress = self.progress
        progress.iterations += 1
        progress.accepted += result.accepted
        progress.work += result.gradient_evaluations
        row = _row(progress.iterations, progress.work / self.samples, result)
        if self.criterion.units is not None:  # what is minimised, in the units of the targets
            for name in {"loss", "local_reduction"} & set(row):
                row[name] *= self.criterion.units.square
        row["seconds"] = sum(lap.values())
        row["seconds_data"], row["seconds_wait"] = lap["data"], lap["wait"]
        row["seconds_communication"] = sum(lap[phase] for phase in COMMUNICATION)
        if result.gradient_evaluations == 0.0:  # the same batch again, and nothing to try
            self.console.say("the gradient is zero: training has converged")
            progress.converged = True
        return row

    def _evaluated(self, epoch: float) -> dict[str, float | None]:
        progress = self.progress
        before, figures = progress.losses, self.evaluate()
        progress.evaluated_at = epoch
        progress.losses = {**figures, **_best(before, figures, epoch)}
        return progress.losses

    def _finish(self) -> dict[str, Any]:
        """Summary and trace of a run that has come to its end."""
        progress = self.progress
        train_loss = self._evaluate([each.samples for each in self.subdomains])["loss"]
        summary = summarise(
            self,
            seconds_total=time.perf_counter() - self.started,
            results={
                "epochs": progress.work / self.samples,
                "outer_iterations": progress.iterations,
                "accepted": progress.accepted,
                "rejected": progress.iterations - progress.accepted,
                "gradient_evaluations": progress.work,
                "train_loss": train_loss,
                **progress.losses,
                # What is best on the test samples would be chosen by them.
                "best_test_accuracy": None,
            },
        )
        self.directory.finish(summary)
        if self.trace is not None:
            self.trace.finish()  # last, so that nothing is lost where it fails
        return summary

    def _iterate(self) -> Iteration:
        comm = self.comm
        for each in self.subdomains:
            each.strange = None
        try:
            with self.clock.phase("algebra", f"iteration {self.progress.iterations + 1}"):
                result = self.optimizer.iterate(*(each.draw for each in self.subdomains))
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
        if strange is not None and not self._told_strange:
            self._told_strange = True  # once a run
            line = (
                f"apts_mpi: warning: rank {comm.rank} on {comm.host}: a loss of iteration "
                f"{self.progress.iterations + 1} is {strange} and was passed over; look for "
                "bad samples in its part if it comes again\n"
            )
            write_error(line)
        return result

    def _strange(self) -> float | None:
        """A loss of this rank's subdomains that was not finite in the last iteration."""
        return next((s.strange for s in self.subdomains if s.strange is not None), None)

    def _refresh_statistics(self) -> None:
        """Make BatchNorm's running statistics those of the network that is evaluated now."""
        if self._statistics_at != self.progress.iterations:
            self._statistics_at = self.progress.iterations
            with self.optimizer.averaged(), self._as_saved():
                self.statistics.refresh()

    def evaluate(self) -> dict[str, float | None]:
        """Figures on the test and validation data, over all ranks' parts: "test_loss", ..."""
        return {
            f"{split}_{name}": value
            for split, samples in self.judged.items()
            for name, value in self._evaluate([samples]).items()
        }

    def _evaluate(self, parts: Sequence[Samples]) -> dict[str, float | None]:
        """Figures over all ranks' parts; every rank evaluates its own."""
        with self.clock.phase("evaluation"):
            self._refresh_statistics()
        with self.clock.phase("evaluation"), self.optimizer.averaged(), self._as_saved():
            return evaluate(self.network, parts, self.comm, self.task, self.criterion)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Within, the buffers are those of a checkpoint, rank 0's; afterwards each rank's own.

        So that a run goes its way however often it is evaluated, and the figures are those of its
        checkpoints. BatchNorm's statistics, made for that, stay.
        """
        others = self.statistics.others()
        with kept(self.module, others):
            replicas.take_rank_zeros(others, self.comm, told=False)
            yield


def _best(
    before: dict[str, float | None], figures: dict[str, float | None], epoch: float
) -> dict[str, float | None]:
    """The best on the validation samples so far, and its epoch; nothing where there are none.

    That is the highest accuracy of classes, the lowest loss of anything else.
    """
    if "val_loss" not in figures:
        return {}
    by = "val_loss"
    if figures["val_accuracy"] is not None and "val_perplexity" not in figures:
        by = "val_accuracy"
    value, best = figures[by], before.get(f"best_{by}")
    if value is None or not math.isfinite(value):
        better = False
    elif best is None:
        better = True
    else:
        better = value > best if by == "val_accuracy" else value < best
    if better:
        return {f"best_{by}": value, "best_epoch": epoch}
    return {name: before.get(name) for name in (f"best_{by}", "best_epoch")}


def _row(iteration: int, epochs: float, result: Iteration) -> dict[str, Any]:
    row = {"iteration": iteration, "epoch": epochs, **vars(result)}
    if math.isnan(result.radius):  # no trust region, so that its fields say nothing
        for item in dataclasses.fields(result):
            if item.default is not dataclasses.MISSING:
                del row[item.name]
    return row
