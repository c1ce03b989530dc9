"""What a run is made of, from its settings: network, data, optimizer, on this rank's device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from apts_mpi.comm import gpu_aware
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.replicas import take_rank_zeros
from apts_mpi.comm.trace import Trace
from apts_mpi.data import DatasetInfo
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.errors import InputError
from apts_mpi.method.packages import require_package
from apts_mpi.networks import named, zoo
from apts_mpi.networks.losses import Criterion, Units, balanced, criterion
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import to_toml
from apts_mpi.training import local_steps
from apts_mpi.training.batch_norm import RunningStatistics
from apts_mpi.training.console import Console
from apts_mpi.training.device import Placement, place
from apts_mpi.training.evaluation import class_counts
from apts_mpi.training.flat_network import CHUNK, FlatNetwork, flat_network
from apts_mpi.training.loggers import require_loggers
from apts_mpi.training.optimizer import Optimizer, optimizer
from apts_mpi.training.provenance import facts
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.samples import Samples, Streamed, load, spread, task_of, units_of
from apts_mpi.training.subdomain import Subdomain
from apts_mpi.training.transforms import Changes
from apts_mpi.training.trial import try_out


@dataclass(frozen=True)
class Run:
    """A run on this rank, ready for its first iteration.

    Attributes:
        config: complete. given: what this run and those it resumes were given, without defaults.
        comm: the ranks. console: for lines to people. placement: device and threads of this rank.
        trace: what all ranks do when, if it is wanted.
        info: the data. judged: this rank's samples of the splits the network is judged on, by name.
        subdomains: of this rank, each with its training samples.
        network: with its parameters as one vector. criterion: its losses.
        statistics: of its BatchNorm layers. optimizer: of its parameters.
        seconds_pacing: time it took to find the number of local steps.
    """

    config: TrainConfig
    given: TrainConfig
    comm: Comm
    console: Console
    placement: Placement
    trace: Trace | None
    info: DatasetInfo
    judged: dict[str, Samples]
    subdomains: list[Subdomain]
    network: FlatNetwork
    criterion: Criterion
    statistics: RunningStatistics
    optimizer: Optimizer
    seconds_pacing: float

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.network.module

    @property
    def samples(self) -> int:
        """Training samples of all ranks together."""
        return self.subdomains[0].samples.total

    @property
    def parts(self) -> int:
        """Subdomains of all ranks together."""
        return self.comm.size * len(self.subdomains)


def build(config: TrainConfig, comm: Comm, resumed: Resumed | None = None) -> Run:
    """Make all that a run needs; every rank calls it.

    Args:
        config: the same on every rank, or the ranks end with a line that says what differs.
        resumed: what the run resumes; the settings are then what ``resuming`` makes them.

    Raises:
        AgreedError: on every rank, for bad input on any of them.
    """
    console = Console(comm)
    what = [f"{name} {value}" for name, value in facts().items()]
    comm.require_same("settings", [*to_toml(config).splitlines(), *what])
    given = config if resumed is None else resumed.ever_given(config)
    with comm.together():
        require_package(config.optimizer)
        if comm.rank == 0:
            require_loggers(config)
    placement = place(config, comm, console.say)
    device = placement.device
    _choose_messages(config, comm, placement, console)
    # From here on, as what it cannot do is agreed on.
    trace = Trace(config.trace, comm, console.say) if config.trace else None
    with comm.clock.phase("data", "load"):
        info, samples = load(
            config.data,
            comm,
            console.say,
            device=device,
            shards=None if resumed is None else resumed.shards,
            subdomains=config.subdomains_per_rank,
            context=config.context,
            stream=config.stream,
        )
    train = samples.pop("train")
    # Each of the other splits is held as one part.
    some = config.evaluate_samples or max(each[0].total for each in samples.values())
    judged = {name: spread(each, some, comm)[0] for name, each in samples.items()}
    task = task_of(info)
    with comm.together():
        if config.patience is not None and not ("val" in judged and judged["val"].total):
            raise InputError(
                f"--patience {config.patience}: the data have no validation samples to judge by; "
                "cut shards with some: shard ... --val-fraction 0.1"
            )
        count = sum(each.total for each in judged.values())
        config = completed(config, comm.size, train[0].total, task=task.kind, judged=count)
    units = units_of(info, device)
    fresh = resumed is None  # else the checkpoint has the parameters
    module, judge = _network(config, comm, task, train, units, placement, fresh=fresh)
    if judge.own and units is not None:
        console.say(
            "the network's own loss is given the targets in their own units, not standardised: "
            f"{units}"
        )
    network = flat_network(module, judge, task, config)
    take_rank_zeros(network.frozen, comm)  # before the trial, so that this warning comes first
    subdomains = _subdomains(config, comm, info, network, train)
    _try(config, comm, console, network, judge, subdomains, list(judged.values()))
    start = time.perf_counter()
    if config.local_steps == AUTO:
        numbers = (comm, console.say, network, subdomains)
        config = local_steps.paced(config, *numbers, batch=given.batch)
        subdomains = _subdomains(config, comm, info, network, train)  # of other minibatches
    seconds = time.perf_counter() - start
    batch = config.batch or CHUNK
    statistics = RunningStatistics(network, train, batch=batch, comm=comm)
    return Run(
        config=config,
        given=given,
        comm=comm,
        console=console,
        placement=placement,
        trace=trace,
        info=info,
        judged=judged,
        subdomains=subdomains,
        network=network,
        criterion=judge,
        statistics=statistics,
        optimizer=optimizer(
            config, network, comm, task.kind, per_pass=subdomains[0].batches.per_pass
        ),
        seconds_pacing=seconds,
    )


def _choose_messages(
    config: TrainConfig, comm: Comm, placement: Placement, console: Console
) -> None:
    """By hosts or not, compressed or not, from a GPU's memory or not."""
    if config.hierarchical:
        comm.join_by_hosts()
    if config.compress not in (None, "none") and comm.parts < 2:
        alone = "one host" if comm.size > 1 else "one rank"
        console.say(
            f"--compress {config.compress}: {alone} has none to exchange with, so that nothing "
            "is rounded"
        )
    if config.gpu_aware and config.compress not in (None, "none"):
        console.say("--gpu-aware: messages go by the host, where they are compressed")
    elif config.gpu_aware:
        gpu_aware.enable(comm, placement.device, console.say)


def _network(
    config: TrainConfig,
    comm: Comm,
    task: Task,
    train: Sequence[Samples],
    units: Units | None,
    placement: Placement,
    *,
    fresh: bool,
) -> tuple[nn.Module, Criterion]:
    """The network, on this rank's device, and its criterion; ``fresh``: nothing is resumed."""
    pretrained = config.pretrained and fresh
    name, given, seed = config.network, config.arguments, config.seed
    with comm.together():
        if pretrained and comm.local_rank == 0:  # one of each host downloads, the others find it
            zoo.build(name, task, given, pretrained=True)
    with comm.together():
        module, own = named.build(name, task, given, seed=seed, pretrained=pretrained)
        weights: Sequence[float] | None = config.weights_given()
        if config.class_weights == "balanced" and task.kind != "classification":
            raise InputError(f"--class-weights balanced: {task.kind} has no classes to weigh")
    counts = None
    if config.class_weights == "balanced":
        counts = class_counts(train, task.outputs, comm)
    with comm.together():
        made = criterion(
            task,
            smoothing=config.label_smoothing,
            weights=weights if counts is None else balanced(counts),
            own=own,
            units=units,
            device=placement.device,
        )
    return module.to(placement.device), made


def _subdomains(
    config: TrainConfig,
    comm: Comm,
    info: DatasetInfo,
    network: FlatNetwork,
    train: Sequence[Samples],
) -> list[Subdomain]:
    """The subdomains of this rank, one for each part of its training samples."""
    changes = None
    with comm.together():
        if config.augment is not None:
            changes = Changes(
                config.augmentations,
                shape=info.sample_shape,
                dtype=info.dtype,
                mean=info.mean,
                std=info.std,
            )
    largest = np.array([float(max(map(len, train)))])
    comm.maximum(largest)
    return [
        Subdomain(
            network,
            samples,
            Batches(
                len(samples),
                largest=int(largest[0]),
                batch=config.batch,
                overlap=config.overlap,
                seed=config.seed,
                rank=comm.rank * len(train) + k,
                window=samples.stream.window if isinstance(samples, Streamed) else None,
            ),
            comm.clock,
            augment=changes,
            key=(config.seed, comm.rank * len(train) + k),
        )
        for k, samples in enumerate(train)
    ]


def _try(
    config: TrainConfig,
    comm: Comm,
    console: Console,
    network: FlatNetwork,
    judge: Criterion,
    subdomains: Sequence[Subdomain],
    judged: Sequence[Samples],
) -> None:
    """Try the user's network on samples as it will be trained and evaluated; nothing stays.

    Also one of this program's where a minibatch of one sample may be none to it.
    """
    if config.network in named.NETWORKS and config.normalization != "batch":
        return
    with comm.together():
        try:
            warning = try_out(
                network,
                judge,
                training=[(each.samples, each.batches.smallest) for each in subdomains],
                evaluation=[*(each.samples for each in subdomains), *judged],
            )
        except InputError as error:
            what = str(error).removeprefix("--network: ")
            line = f"--network {config.network}: {what} (rank {comm.rank})"
            raise InputError(line) from error
    if warning:
        console.say(f"warning: --network {config.network}: {warning}")
