"""A network is tried on samples as it will be trained and evaluated, before it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain

from torch import Tensor, nn

from apts_mpi.errors import InputError, user_code
from apts_mpi.networks.evaluating import kept
from apts_mpi.networks.losses import Criterion
from apts_mpi.networks.seeding import same_state
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Samples

_ROUNDING = 1e-4  # part of a loss that may differ by the order of summation, on a GPU
_FEW, _OTHER = 2, 3  # samples of a trial: of different numbers in training and in evaluation


def try_out(
    network: FlatNetwork,
    criterion: Criterion,
    *,
    training: Sequence[tuple[Samples, int]],
    evaluation: Sequence[Samples],
) -> str:
    """See that a network can be trained and evaluated; nothing of it stays.

    Args:
        training: samples, and how many the smallest minibatch of them has. evaluation: samples.

    Returns:
        A warning about it, "" for none.

    Raises:
        InputError: it cannot; the line says on what it fails.
    """
    module, warning = network.module, ""
    with network.generators.seeded(0), kept(module):
        before = _forms(module)
        for samples, smallest in training:
            count = min(smallest, _FEW)
            if count:
                x, y = next(iter(samples.blocks(count)))
                with _user_code("training", len(x)):
                    network.loss_and_gradient(x, y)
                warning = warning or _differing(network, x, y)
        for samples in evaluation:
            count = min(_OTHER, len(samples) % network.chunk or network.chunk)
            if len(samples):
                block = next(iter(samples.blocks(count)))
                network.generators.seed(())
                place = network.generators.state()  # where an evaluation starts, too
                with _user_code("evaluation", len(block[1])):
                    network.evaluate([block], criterion)
                if not warning and not same_state(place, network.generators.state()):
                    warning = (
                        "draws random numbers in evaluation, too: figures repeat on the same "
                        "number of ranks only"
                    )
        after = _forms(module)
    network.gradient.zero_()
    for name in chain(before, after):
        if before.get(name) != after.get(name):
            raise InputError(
                f"its {name[:80]} is {before.get(name, 'not there')} before it is used and "
                f"{after.get(name, 'not there')} after: a checkpoint could not be loaded; keep it "
                "out of buffers"
            )
    return warning


def _user_code(way: str, count: int) -> AbstractContextManager[None]:
    alone = (
        "; a minibatch may have one sample here: cut shards of more samples, take another "
        "--batch, or fewer ranks and subdomains"
    )
    what = f"fails in {way} on {count} sample{'s' * (count > 1)}"
    return user_code(what, alone if count == 1 else "")


def _differing(network: FlatNetwork, x: Tensor, y: Tensor) -> str:
    """A line where a loss is another one each time, from numbers that nothing here can repeat."""
    losses = []
    for _ in range(2):
        with kept(network.module):
            network.generators.seed(())
            losses.append(network.loss(x, y))
    first, second = losses
    if math.isnan(first) or abs(first - second) <= _ROUNDING * abs(first):
        return ""
    return (
        f"the loss of {len(x)} samples is {first:.6g} and then {second:.6g}: it draws random "
        "numbers that cannot be repeated, so that the reduction ratio is noise; draw them from "
        "torch's, numpy's or random's own generators, or keep a generator as the module's attribute"
    )


def _forms(module: nn.Module) -> dict[str, str]:
    """Types and shapes of parameters and buffers by name."""
    both = chain(module.named_parameters(), module.named_buffers())
    return {name: f"{str(each.dtype)[6:]} {tuple(each.shape)}" for name, each in both}
