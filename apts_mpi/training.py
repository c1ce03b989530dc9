"""The loop: batches, outer iterations, evaluation, metrics, and when to stop."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apts_mpi import networks, pacing
from apts_mpi.baselines import warm_up
from apts_mpi.clock import COMMUNICATION
from apts_mpi.comm import Comm
from apts_mpi.config import AUTO, BASELINES, TrainConfig
from apts_mpi.data import (
    DatasetInfo,
    Partition,
    cache_directory,
    load_source,
    read_info,
    read_partition,
    write_shards,
)
from apts_mpi.data.batches import Batches
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.flat import FlatNetwork
from apts_mpi.iteration import Iteration
from apts_mpi.optimizers import optimizer
from apts_mpi.report import Console, RunDirectory, summarise, versions
from apts_mpi.trace import Trace, refusal

Lap = dict[str, float]  # seconds by phase

REPLICA_CHECK_EVERY = 50  # outer iterations


@dataclass(frozen=True)
class Samples:
    """A part of a split on this rank's device."""

    x: Tensor
    y: Tensor
    total: int

    @classmethod
    def of(cls, part: Partition, device: torch.device) -> Samples:
        """Move a part that was read to the device."""
        x, y = torch.from_numpy(part.x).to(device), torch.from_numpy(part.y).to(device)
        return cls(x, y, part.total)


class Training:
    """One run on this rank, from settings to summary; every rank makes one and calls ``run``.

    Args:
        config: the same on every rank, or the ranks end with a line that says what differs.
        comm: the ranks.

    Raises:
        AgreedError: on every rank, for bad input on any of them.
    """

    def __init__(self, config: TrainConfig, comm: Comm) -> None:
        if config.optimizer in BASELINES:
            warm_up()  # as torch's own import, no part of the run's time
        self._started = time.perf_counter()
        self.comm = comm
        self.clock = comm.clock
        self.console = Console(comm)
        settings = config.to_toml().splitlines()
        comm.require_same("settings", settings + [f"{k} {v}" for k, v in versions().items()])
        self.config = config
        self.device = self._bind()
        # From here on, as what it cannot do is agreed on.
        self.trace = Trace(config.trace, comm, self.console.say) if config.trace else None
        with self.clock.phase("data", "load"):
            self.info, self.train, self.test = self._load()
        self.config = config = config.completed(comm.size, self.train.total)
        module = networks.build(
            config.network,
            sample_shape=self.info.sample_shape,
            classes=len(self.info.classes),
            hidden=config.hidden,
            seed=config.seed,
        ).to(self.device)
        self.network = FlatNetwork(module, _cross_entropy)
        largest = np.array([float(len(self.train.y))])
        comm.maximum(largest)
        self.batches = Batches(
            len(self.train.y),
            largest=int(largest[0]),
            batch=config.batch,
            overlap=config.overlap,
            seed=config.seed,
            rank=comm.rank,
        )
        self._indices = iter(self.batches)
        self.seconds_pacing = 0.0  # what finding the local steps has taken
        if config.local_steps == AUTO:
            start = time.perf_counter()
            self.config = config = self._paced(config)
            self.seconds_pacing = time.perf_counter() - start
        whole = self.batches.whole
        self.optimizer = optimizer(config, self.network, comm, whole=whole)
        path = Path(config.out) if config.out else default_out(config, comm)
        # Complete, so that the run repeats from it; where to write is the next run's own to choose.
        complete = dataclasses.replace(config, out=None, trace=None, threads=self.threads)
        self.directory = RunDirectory(path, complete, comm)

    # ---- set-up ----------------------------------------------------------------------------

    def _bind(self) -> torch.device:
        """Device and threads of this rank, told in one line."""
        comm, config = self.comm, self.config
        error = None
        if config.trace and comm.rank == 0:  # agreed on below, without a message of its own
            error = refusal(config.trace, config.out)
        if config.device == "cuda" and not torch.cuda.is_available():
            error = InputError(
                f"--device cuda: rank {comm.rank} on {comm.host} sees no GPU; use --device cpu"
            )
        comm.agree(error)
        # All ranks alike: what they compute redundantly must round alike.
        wanted = config.threads or max(comm.host_cores // comm.local_size, 1)
        least = -np.array([wanted, config.device != "cpu" and torch.cuda.is_available()], float)
        comm.maximum(least)
        self.threads = threads = int(-least[0])
        torch.set_num_threads(threads)
        device = torch.device("cpu")
        if least[1] < 0:
            device = torch.device("cuda", comm.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        used = comm.local_size * threads
        self.oversubscribed = used > comm.host_cores
        line = (
            f"{comm.size} ranks, {comm.local_size} on this host with {comm.host_cores} cores, "
            f"{threads} thread{'s' * (threads > 1)} each, on {device.type}"
        )
        if self.oversubscribed:
            line += f"; oversubscribed {used / comm.host_cores:.1f} times: wall times mean little"
        self.console.say(line)
        return device

    def _load(self) -> tuple[DatasetInfo, Samples, Samples]:
        comm, error = self.comm, None
        directory = Path(self.config.data)
        embedded = self.config.data == "digits" and not directory.exists()
        try:
            if embedded:
                directory = cache_directory("digits", comm.size)
                # The cache may be a host's own: one rank a host makes it where it is not there.
                if comm.local_rank == 0 and not directory.exists():
                    where = str(directory).replace(str(Path.home()), "~", 1)
                    self.console.say(f"cutting the digits into {comm.size} shards in {where}")
                    write_shards(load_source("digits"), directory, shards=comm.size, exist_ok=True)
        except InputError as caught:
            error = caught
        comm.agree(error)
        try:
            info = read_info(directory)
            train = read_partition(directory, "train", comm.rank, comm.size)
            test = read_partition(directory, "test", comm.rank, comm.size)
        except InputError as caught:
            error = caught
        comm.agree(error)
        comm.require_same("data", [f"{info.name} {info.digest}"])
        return info, Samples.of(train, self.device), Samples.of(test, self.device)

    def _paced(self, config: TrainConfig) -> TrainConfig:
        """The settings with as many local steps as messages and gradients cost here."""
        assert config.batch is not None, "completed settings have one"
        x, y = self.train.x[: config.batch], self.train.y[: config.batch]
        message, gradient = pacing.measure(
            self.comm, self.network.vector, lambda: len(y) and self.network.loss_and_gradient(x, y)
        )
        steps = pacing.local_steps(
            message=message,
            gradient=gradient,
            samples=self.train.total,
            ranks=self.comm.size,
            batch=config.batch,
        )
        self.console.say(
            f"{steps} local steps of {config.batch} samples: an iteration's messages take "
            f"{1e3 * message:.3g} ms, a gradient {1e3 * gradient:.3g} ms"
        )
        return dataclasses.replace(config, local_steps=steps)

    # ---- the loop --------------------------------------------------------------------------

    def run(
        self, heard: Callable[[dict[str, Any], Lap, Lap], object] = lambda row, lap, rest: None
    ) -> dict[str, Any]:
        """Train; returns the summary, the same on every rank.

        Args:
            heard: called after every outer iteration with its row of the metrics, this rank's
                seconds by phase, and those of what came between it and the next: evaluation,
                checks, writing.
        """
        config, comm = self.config, self.comm
        directory = self.directory
        work, accepted, evaluated_at = 0.0, 0, -math.inf
        iterations, epochs = 0, 0.0
        losses: dict[str, float] = {}
        best = 0.0
        assert config.epochs is not None, "completed settings have them"
        self.console.start(config.epochs)
        last = False
        while not last:
            self.clock.lap()
            result = self._iterate(iterations + 1)
            lap = self.clock.lap()
            iterations += 1
            work += result.gradient_evaluations
            epochs = work / self.train.total
            accepted += result.accepted
            row = _row(iterations, epochs, result)
            row["seconds"] = sum(lap.values())
            row["seconds_data"], row["seconds_wait"] = lap["data"], lap["wait"]
            row["seconds_communication"] = sum(lap[phase] for phase in COMMUNICATION)
            last = epochs >= config.epochs or iterations == config.iterations
            if result.gradient_evaluations == 0.0:  # the same batch again, and nothing to try
                self.console.say("the gradient is zero: training has converged")
                last = True
            if last or epochs - evaluated_at >= config.evaluate_every:
                evaluated_at = epochs
                losses = self.evaluate()
                best = max(best, losses["test_accuracy"])
                row.update(losses)
            directory.row(row)
            self.console.progress(row)
            if iterations % REPLICA_CHECK_EVERY == 0 or last:
                comm.check_replicas(self.network.vector)
            heard(row, lap, self.clock.lap())
        self.console.stop()
        train_loss, _ = self._evaluate(self.train)
        summary = summarise(
            self,
            seconds_total=time.perf_counter() - self._started,
            results={
                "epochs": epochs,
                "outer_iterations": iterations,
                "accepted": accepted,
                "rejected": iterations - accepted,
                "gradient_evaluations": work,
                "train_loss": train_loss,
                **losses,
                "best_test_accuracy": best,
            },
        )
        directory.finish(summary)
        if self.trace is not None:
            self.trace.finish()  # last, so that nothing is lost where it fails
        return summary

    def _draw(self) -> tuple[Callable[[bool], float], int]:
        """The loss over the next minibatch, and how many samples it has, which may be 0."""
        with self.clock.phase("data"):
            index = next(self._indices)
            if self.batches.whole:
                x, y = self.train.x, self.train.y
            else:
                chosen = torch.from_numpy(index).to(self.device)
                # Twice as fast as indexing, for the same values.
                x, y = (part.index_select(0, chosen) for part in (self.train.x, self.train.y))
        network, clock = self.network, self.clock

        def objective(with_gradient: bool) -> float:
            with clock.phase("gradient", "" if with_gradient else "loss"):
                return network.loss_and_gradient(x, y) if with_gradient else network.loss(x, y)

        return objective, len(y)

    def _iterate(self, number: int) -> Iteration:
        try:
            with self.clock.phase("algebra", f"iteration {number}"):
                return self.optimizer.iterate(self._draw)
        except FloatingPointError as error:  # the same on every rank
            raise AgreedError(str(error), status=1) from error

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the test data, over all ranks' parts."""
        loss, right = self._evaluate(self.test)
        return {"test_loss": loss, "test_accuracy": right}

    def _evaluate(self, samples: Samples) -> tuple[float, float]:
        """Mean loss and share of right answers over all ranks; every rank evaluates its part."""
        with self.clock.phase("evaluation"):
            with self.optimizer.averaged():
                own, correct = self.network.evaluate(samples.x, samples.y)
            loss, right = self.comm.sum_scalars((own, float(correct)))
        return loss / samples.total, right / samples.total


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _row(iteration: int, epochs: float, result: Iteration) -> dict[str, Any]:
    row = {"iteration": iteration, "epoch": epochs, **vars(result)}
    if math.isnan(result.radius):  # no trust region, so that its fields say nothing
        for item in dataclasses.fields(result):
            if item.default is not dataclasses.MISSING:
                del row[item.name]
    return row


def default_out(config: TrainConfig, comm: Comm) -> Path:
    """A run directory that does not exist yet, the same on every rank."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{Path(config.data).name}-{config.optimizer}-{comm.size}ranks-{stamp}-{os.getpid()}"
    return Path("runs") / comm.broadcast_text(name)
