"""Memory of an optimizer: what it holds, and the most that an iteration takes besides."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apts_mpi.trust_region.objective import Draw, Objective, Pending

SMALL = 16  # what is smaller than this part of the parameters is not followed


def _storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by address, views counted once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def bytes_held() -> int:
    """Of all tensors that there are."""
    gc.collect()
    # By type: some lazy modules among the objects import what they are asked for.
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    return sum(_storages(tensors).values())


class PeakVectors(TorchDispatchMode):
    """Within, follows the tensors that are made, but for those of the network's evaluations.

    Args:
        n: parameters of the network.

    Attributes:
        most: bytes that there were at once.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.most = 0
        self._least = 4 * n // SMALL
        self._paused = False
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._paused:
            return result
        given = _storages([leaf for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)])
        for leaf in filter(_is_tensor, tree_leaves(result)):
            storage = leaf.untyped_storage()
            if storage.nbytes() >= self._least and storage.data_ptr() not in given:
                self._made.append(weakref.ref(leaf))
        alive = [tensor for tensor in (made() for made in self._made) if tensor is not None]
        self._made = [weakref.ref(tensor) for tensor in alive]
        self.most = max(self.most, sum(_storages(alive).values()))
        return result

    def unseen(self, draw: Draw) -> Draw:
        """The same minibatches, whose evaluations are not followed."""

        def drawn() -> tuple[Objective, int]:
            objective, samples = draw()

            def evaluate(with_gradient: bool) -> float | Pending:
                self._paused = True
                try:
                    return objective(with_gradient)
                finally:
                    self._paused = False

            return evaluate, samples

        return drawn


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
