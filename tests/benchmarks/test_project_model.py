"""The cost model's formulas: messages and stragglers against simulations, an outer iteration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the benchmarks need scipy: pip install .[bench]")

from benchmarks.project.model import (
    ALGORITHMS,
    SCALARS_BYTES,
    Costs,
    Link,
    doubling,
    iteration,
    rabenseifner,
    ring,
    work_of,
)
from benchmarks.project.spread import Spread, normal_maximum, sample_maximum, spread
from tests.benchmarks.project_rows import EVEN, LINKS, N

ETHERNET = Link(latency=30e-6, per_byte=1 / 120e6, reduction=2e-10)


# ---- Allreduce against a simulation, message by message ------------------------------------------


class Machine:
    """Ranks with a clock and a vector each, who really send; one partner at a time each way."""

    def __init__(self, ranks: int, link: Link) -> None:
        self.link, self.length = link, 32 * ranks  # all the algorithms' pieces are whole
        chance = np.random.default_rng(ranks)
        self.data = [chance.standard_normal(self.length) for _ in range(ranks)]
        self.total = np.sum(self.data, axis=0)
        self.clock = np.zeros(ranks)

    @property
    def nbytes(self) -> int:
        return 8 * self.length

    def round(self, *messages: tuple[int, int, slice, bool]) -> None:
        """Messages (from, to, part, whether it is added) that go at the same time."""
        before = self.clock.copy()
        sent = [self.data[source][part].copy() for source, _, part, _ in messages]
        for (source, to, part, adds), values in zip(messages, sent, strict=True):
            nbytes = 8 * len(values)
            end = max(before[source], before[to])
            end += self.link.latency + nbytes * self.link.per_byte
            self.clock[source] = max(self.clock[source], end)
            if adds:
                self.data[to][part] += values
                end += nbytes * self.link.reduction
            else:
                self.data[to][part] = values
            self.clock[to] = max(self.clock[to], end)

    def simulate_ring(self) -> None:
        p = len(self.data)
        piece = self.length // p

        def part(i: int) -> slice:
            return slice(i % p * piece, (i % p + 1) * piece)

        for adds in (True, False):
            for step in range(p - 1):
                first = 0 if adds else 1
                self.round(*((r, (r + 1) % p, part(r + first - step), adds) for r in range(p)))

    def _core(self) -> tuple[list[int], int]:
        """The ranks that a power of two keeps, the even ones of the pairs first; and the pairs."""
        p = len(self.data)
        extra = p - (1 << (p.bit_length() - 1))
        return [*range(0, 2 * extra, 2), *range(2 * extra, p)], extra

    def simulate_doubling(self) -> None:
        whole = slice(0, self.length)
        core, extra = self._core()
        if extra:
            self.round(*((2 * i + 1, 2 * i, whole, True) for i in range(extra)))
        distance = 1
        while distance < len(core):
            pairs = [(core[i], core[i ^ distance]) for i in range(len(core))]
            self.round(*((a, b, whole, True) for a, b in pairs))
            distance *= 2
        if extra:
            self.round(*((2 * i, 2 * i + 1, whole, False) for i in range(extra)))

    def simulate_rabenseifner(self) -> None:
        half = self.length // 2
        low, high, whole = slice(0, half), slice(half, self.length), slice(0, self.length)
        core, extra = self._core()
        if extra:
            down = ((2 * i, 2 * i + 1, high, True) for i in range(extra))
            self.round(*down, *((2 * i + 1, 2 * i, low, True) for i in range(extra)))
            self.round(*((2 * i + 1, 2 * i, high, False) for i in range(extra)))
        own = [(0, self.length)] * len(core)
        distance, halvings = len(core) // 2, []
        while distance:
            halvings.append(distance)
            messages, kept = [], []
            for i, rank in enumerate(core):
                start, end = own[i]
                middle = (start + end) // 2
                keeps, gives = ((start, middle), (middle, end))[:: -1 if i & distance else 1]
                messages.append((rank, core[i ^ distance], slice(*gives), True))
                kept.append(keeps)
            self.round(*messages)
            own, distance = kept, distance // 2
        for distance in reversed(halvings):
            gathered = [(r, core[i ^ distance], slice(*own[i]), False) for i, r in enumerate(core)]
            self.round(*gathered)
            both = [(own[i], own[i ^ distance]) for i in range(len(core))]
            own = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in both]
        if extra:
            self.round(*((2 * i, 2 * i + 1, whole, False) for i in range(extra)))


SIMULATIONS: dict[str, Callable[[Machine], None]] = {
    "ring": Machine.simulate_ring,
    "recursive doubling": Machine.simulate_doubling,
    "Rabenseifner": Machine.simulate_rabenseifner,
}


@pytest.mark.parametrize("name", SIMULATIONS)
@pytest.mark.parametrize("ranks", range(2, 18))
def test_an_allreduce_takes_what_its_messages_take(name: str, ranks: int) -> None:
    machine = Machine(ranks, Link(1.7, 0.013, 0.0071))
    SIMULATIONS[name](machine)
    for vector in machine.data:
        assert vector == pytest.approx(machine.total)
    formula = ALGORITHMS[name](machine.nbytes, ranks, machine.link)
    assert machine.clock.max() == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 3, 8, 17, 64])
def test_the_formulas_limits(ranks: int) -> None:
    rounds, power = int(math.log2(ranks)), ranks & (ranks - 1) == 0
    latency, rate = Link(1.0, 0.0), Link(0.0, 1.0)
    assert ring(1e6, ranks, latency) == 2 * (ranks - 1)
    assert doubling(1e6, ranks, latency) == rounds + (0 if power else 2)
    assert rabenseifner(1e6, ranks, latency) == 2 * rounds + (0 if power else 3)
    assert ring(1.0, ranks, rate) == pytest.approx(2 * (ranks - 1) / ranks)
    assert ETHERNET.seconds(4.0, ranks) == doubling(4.0, ranks, ETHERNET)
    # Nothing moves less than 2 (p - 1) / p of the vector: the ring is best for long ones.
    assert ETHERNET.seconds(1e12, ranks) == pytest.approx(ring(1e12, ranks, ETHERNET), rel=1e-3)
    for nbytes in (0.0, 4.0, 1e5, 1e9):
        assert ETHERNET.seconds(nbytes, ranks) == min(
            seconds(nbytes, ranks, ETHERNET) for seconds in ALGORITHMS.values()
        )


def test_the_best_allreduce_grows_with_bytes_and_ranks() -> None:
    for link in (ETHERNET, *LINKS.values()):
        for nbytes in (4, 10**4, 10**6, 10**9):
            times = [link.seconds(nbytes, 2**i) for i in range(13)]
            assert times == sorted(times)
        for ranks in (2, 7, 4096):
            times = [link.seconds(10.0**i, ranks) for i in range(11)]
            assert times == sorted(times)
    assert ETHERNET.seconds(1e6, 1) == 0.0
    with pytest.raises(ValueError, match="Allreduce"):
        ETHERNET.seconds(-1, 2)


# ---- stragglers ----------------------------------------------------------------------------------


def test_the_expected_maximum_of_known_distributions() -> None:
    levels = (np.arange(40_000) + 0.5) / 40_000
    uniform, exponential = spread(levels.tolist()), spread((-np.log1p(-levels)).tolist())
    for ranks in (1, 2, 3, 8, 100):
        # of uniform numbers N / (N + 1), their mean 1/2; of exponential ones 1 + 1/2 + ... + 1/N
        assert uniform.maximum(ranks) == pytest.approx(2 * ranks / (ranks + 1), rel=1e-3)
        harmonic = sum(1 / i for i in range(1, ranks + 1))
        assert exponential.maximum(ranks) == pytest.approx(harmonic, rel=2e-3)
    assert normal_maximum(1) == pytest.approx(0.0, abs=1e-8)
    assert normal_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert normal_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))


def test_the_expected_maximum_is_that_of_draws() -> None:
    chance = np.random.default_rng(1)
    times = np.sort(chance.gamma(3.0, size=50))
    for ranks in (2, 5, 40):
        draws = chance.choice(times, (40_000, ranks)).max(axis=1)
        assert sample_maximum(tuple(times), ranks) == pytest.approx(draws.mean(), rel=0.01)
    draws = chance.standard_normal((800, 4096)).max(axis=1)
    assert normal_maximum(4096) == pytest.approx(draws.mean(), rel=0.01)


def test_more_ranks_wait_longer_also_beyond_the_sample() -> None:
    own = spread(np.random.default_rng(2).gamma(20.0, size=60).tolist())
    waits = [own.excess(ranks) for ranks in range(1, 300)]
    assert waits[0] == pytest.approx(0.0, abs=1e-12)
    assert waits == sorted(waits)
    assert own.maximum(4096) > own.times[-1]  # the sample has no time as long
    assert EVEN.excess(4096) == 0.0


@pytest.mark.parametrize("factor", [0.25, 1.0, 9.0, 1000.0])
def test_the_spread_of_longer_and_shorter_iterations(factor: float) -> None:
    times = spread(np.random.default_rng(3).gamma(40.0, size=500).tolist(), evaluations=4.0)
    other = times.over(4.0 * factor)
    assert np.mean(other.times) == pytest.approx(1.0)
    assert np.std(other.times) == pytest.approx(np.std(times.times) / math.sqrt(factor), rel=0.05)
    if factor == 9.0:  # the maximum of sums, against a simulation of them
        chance = np.random.default_rng(4)
        sums = chance.choice(times.times, (20_000, 8, 9)).mean(axis=2).max(axis=1).mean()
        assert other.excess(8) == pytest.approx(sums - 1.0, rel=0.06)
    with pytest.raises(ValueError, match="positive times"):
        spread([])


# ---- an outer iteration --------------------------------------------------------------------------


def test_an_outer_iteration_is_the_sum_of_its_parts() -> None:
    own = Costs(1e-5, 1e-4, 2e-4, 3e-4, 1e-7, 5e-4, Spread((0.9, 1.1), 20.0))
    work = work_of("apts", N, 250, 20)
    parts = iteration(work, own, ETHERNET, 4, slowdown=1.1)
    assert parts.compute == pytest.approx(1.1 * (20 + 1 / 3) * (1e-4 + 250e-5))
    assert parts.algebra == pytest.approx(1.1 * (3e-4 + 20 * 2e-4))
    assert parts.data == pytest.approx(1.1 * 20 * 250e-7)
    barrier = 2 * 30e-6
    assert parts.vector == pytest.approx(barrier + ETHERNET.seconds(4 * (N + 60), 4))
    assert parts.scalar == pytest.approx(barrier + ETHERNET.seconds(SCALARS_BYTES, 4))
    assert parts.imbalance > 0.0
    assert parts.total == pytest.approx(sum(vars(parts).values()))
    alone = iteration(work, own, ETHERNET, 1)
    assert alone.total == alone.busy
    adam = iteration(work_of("adam", N, 250, None), own, ETHERNET, 4)
    assert adam.scalar == 0.0
    assert adam.vector == pytest.approx(barrier + ETHERNET.seconds(4 * (N + 20), 4))
    with pytest.raises(ValueError, match="not known"):
        work_of("newton", N, 250, 20)
    with pytest.raises(ValueError, match="missing"):
        work_of("diloco", N, 250, None)
