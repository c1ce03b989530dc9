"""The generators of random numbers that a network may draw from, whoever made it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Generators:
    """The generators that a forward pass may draw from.

    Those are torch's default ones, numpy's and ``random``'s global ones, and what modules hold as
    attributes of their own.

    Args:
        device: of the network. modules: to be looked through for generators.
    """

    def __init__(self, device: torch.device, *modules: nn.Module) -> None:
        self._torch = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._torch.append(torch.cuda.default_generators[index])
        self._random: list[random.Random] = []
        self._numpy: list[np.random.Generator | np.random.RandomState] = []
        for module in modules:
            for part in module.modules():
                self._find(vars(part).values())

    def _find(self, held: Iterable[Any]) -> None:
        """Take in the generators among values, and among those of lists and the like."""
        for each in held:
            if isinstance(each, torch.Generator):
                self._torch.append(each)
            elif isinstance(each, random.Random):
                self._random.append(each)
            elif isinstance(each, (np.random.Generator, np.random.RandomState)):
                self._numpy.append(each)
            elif isinstance(each, dict):
                self._find(each.values())
            elif isinstance(each, (list, tuple, set)):
                self._find(each)

    def seed(self, key: Sequence[int]) -> None:
        """Start all of them at a place that the key alone decides; no other key leads there."""
        text = ",".join(map(str, key)).encode()
        self._start(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def _start(self, number: int) -> None:
        for generator in self._torch:
            generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)
        for own in self._random:
            own.seed(number)
        for each in self._numpy:
            if isinstance(each, np.random.RandomState):
                each.seed(number % 2**32)
            else:
                bits: Any = each.bit_generator
                bits.state = type(bits)(number).state

    @contextmanager
    def seeded(self, number: int) -> Iterator[None]:
        """Within, all of them draw by a number from 0 up; afterwards they continue as before."""
        before = self.state()
        torch.manual_seed(number)  # of devices that are not the network's, too
        self._start(number)
        try:
            yield
        finally:
            self.restore(before)

    def state(self) -> list[Any]:
        """Where they are now, for ``restore``."""
        return [
            [generator.get_state() for generator in self._torch],
            [random.getstate(), *(own.getstate() for own in self._random)],
            [np.random.get_state(), *map(_state, self._numpy)],
        ]

    def restore(self, state: list[Any]) -> None:
        """Bring them back to where they were."""
        for generator, value in zip(self._torch, state[0], strict=True):
            generator.set_state(value)
        random.setstate(state[1][0])
        for own, value in zip(self._random, state[1][1:], strict=True):
            own.setstate(value)
        np.random.set_state(state[2][0])
        for each, value in zip(self._numpy, state[2][1:], strict=True):
            if isinstance(each, np.random.RandomState):
                each.set_state(value)
            else:
                each.bit_generator.state = value


def _state(generator: np.random.Generator | np.random.RandomState) -> Any:
    """Of a RandomState with the number that it keeps for the next call."""
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def same_state(a: Any, b: Any) -> bool:
    """Of states, which are nested and hold arrays."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return all(same_state(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return all(same_state(one, other) for one, other in zip(a, b, strict=True))
    return bool(a == b)
