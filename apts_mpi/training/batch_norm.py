"""Running statistics of BatchNorm (method/batch_norm.py), from a run's training samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import batch_norm
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Samples


class RunningStatistics(batch_norm.RunningStatistics):
    """The statistics of a network's BatchNorm layers.

    Args:
        network: of this rank. parts: this rank's training samples. batch: samples of a forward
            pass. comm: the ranks.
    """

    def __init__(
        self, network: FlatNetwork, parts: Sequence[Samples], *, batch: int, comm: Comm
    ) -> None:
        super().__init__(network.module, comm)
        self._network, self._parts = network, parts
        self._batch = max(min(batch, network.chunk), 2)

    def refresh(self) -> None:
        """Compute them for the present parameters; every rank calls it."""
        self.join(self.collect(self._passes()))

    def _passes(self) -> Iterator[int]:
        self._network.generators.seed(())  # of the parameters alone
        count = -(-batch_norm.SAMPLES // (self._batch * len(self._parts)))  # of each part, at most
        for samples in self._parts:
            for x, _ in itertools.islice(samples.blocks(self._batch), count):
                if len(x) > 1:  # one sample has no variance
                    self._network.outputs(x)
                    yield len(x)
