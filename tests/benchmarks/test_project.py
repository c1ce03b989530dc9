"""The cost model: its formulas against simulations, its fits against rows it made, its pages."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")
pytest.importorskip("scipy", reason="the benchmarks need scipy: pip install .[bench]")

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness.results import Row
from benchmarks.project.command import CONFIG
from benchmarks.project.fit import costs_of, fits_of, line
from benchmarks.project.grid import MEASURED, pays_to, project
from benchmarks.project.model import (
    ALGORITHMS,
    SCALARS_BYTES,
    Costs,
    Link,
    best,
    doubling,
    iteration,
    rabenseifner,
    ring,
    work_of,
)
from benchmarks.project.plan import read_plan
from benchmarks.project.predict import predict
from benchmarks.project.rows import network, read, scaling
from benchmarks.project.spread import Spread, normal_maximum, sample_maximum, spread

N = 118_282
ETHERNET = Link(latency=30e-6, per_byte=1 / 120e6, reduction=2e-10)
LINKS = {"none": Link(2e-6, 1 / 4e9), "100mbit": Link(1e-4, 1 / 12e6)}
EVEN = Spread((1.0,))

# ---- Allreduce against a simulation, message by message ----------------------------------------


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
    assert best(4.0, ranks, ETHERNET)[0] == "recursive doubling"
    # Nothing moves less than 2 (p - 1) / p of the vector: the ring is best for long ones.
    assert best(1e12, ranks, ETHERNET)[1] == pytest.approx(ring(1e12, ranks, ETHERNET), rel=1e-3)
    for nbytes in (0.0, 4.0, 1e5, 1e9):
        assert best(nbytes, ranks, ETHERNET)[1] == min(
            seconds(nbytes, ranks, ETHERNET) for seconds in ALGORITHMS.values()
        )


def test_the_best_allreduce_grows_with_bytes_and_ranks() -> None:
    for link in (ETHERNET, *LINKS.values()):
        for nbytes in (4, 10**4, 10**6, 10**9):
            times = [best(nbytes, 2**i, link)[1] for i in range(13)]
            assert times == sorted(times)
        for ranks in (2, 7, 4096):
            times = [best(10.0**i, ranks, link)[1] for i in range(11)]
            assert times == sorted(times)
    assert best(1e6, 1, ETHERNET) == ("none", 0.0)
    with pytest.raises(ValueError, match="Allreduce"):
        best(-1, 2, ETHERNET)


# ---- stragglers --------------------------------------------------------------------------------


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


# ---- an outer iteration ------------------------------------------------------------------------


def test_an_outer_iteration_is_the_sum_of_its_parts() -> None:
    own = Costs(1e-5, 1e-4, 2e-4, 3e-4, 1e-7, 5e-4, Spread((0.9, 1.1), 20.0))
    work = work_of("apts-scaled", N, 250, 20)
    parts = iteration(work, own, ETHERNET, 4, slowdown=1.1)
    assert parts.compute == pytest.approx(1.1 * (20 + 1 / 3) * (1e-4 + 250e-5))
    assert parts.algebra == pytest.approx(1.1 * (3e-4 + 20 * 2e-4))
    assert parts.data == pytest.approx(1.1 * 20 * 250e-7)
    barrier = 2 * 30e-6
    assert parts.vector == pytest.approx(barrier + best(4 * (N + 60), 4, ETHERNET)[1])
    assert parts.scalar == pytest.approx(barrier + best(SCALARS_BYTES, 4, ETHERNET)[1])
    assert parts.imbalance > 0.0
    assert parts.total == pytest.approx(sum(vars(parts).values()))
    alone = iteration(work, own, ETHERNET, 1)
    assert alone.total == alone.busy
    adam = iteration(work_of("adam", N, 250, None), own, ETHERNET, 4)
    assert adam.scalar == 0.0
    assert adam.vector == pytest.approx(barrier + best(4 * (N + 20), 4, ETHERNET)[1])
    with pytest.raises(ValueError, match="not known"):
        work_of("newton", N, 250, 20)
    with pytest.raises(ValueError, match="missing"):
        work_of("diloco", N, 250, None)


# ---- rows that the model made itself -----------------------------------------------------------

MADE = {
    "apts-scaled": Costs(1.1e-5, 0.0, 2e-4, 3e-3, 1e-7, 5e-4, EVEN),
    "adam": Costs(1.2e-5, 0.0, 3e-4, 0.0, 1e-7, 4e-4, EVEN),
    "diloco": Costs(1.15e-5, 0.0, 4e-4, 2e-3, 1e-7, 3e-4, EVEN),
    "apts-sr1": Costs(1.0e-5, 0.0, 5e-3, 0.0, 1e-7, 6e-4, EVEN),
}
SLOWDOWN = 1.2
STEPS = {"apts-scaled": 40, "diloco": 40}
COUNTS = {"evaluations": 8 + 1 / 3, "vectors": 3.0}  # of an L-SR1 iteration


def scaling_rows(
    benchmark: str, method: str, ranks: int, batch: int, steps: int | None, *, cores: int = 2
) -> Iterator[Row]:
    """The rows of two repetitions, as ``strong`` and ``weak`` write them."""
    counts = COUNTS if method == "apts-sr1" else {}
    work = work_of(method, N, batch, steps, **counts)
    slow = SLOWDOWN if ranks > 1 else 1.0
    parts = iteration(work, MADE[method], LINKS["none"], ranks, slowdown=slow)
    message = parts.vector + parts.scalar
    phases = dict.fromkeys(PHASES, 0.0)
    phases.update(data=parts.data, gradient=parts.compute, algebra=parts.algebra)
    phases.update(other=parts.other, allreduce=0.75 * message, wait=0.25 * message)
    phases["evaluation"] = 7.0  # is not the iteration's
    iterations = 12
    for repetition in (0, 1):
        for rank in range(ranks):
            for phase in PHASES:
                yield {
                    "settings": {
                        **{"benchmark": benchmark, "method": method, "data": "mnist"},
                        **{"hidden": "128,128", "ranks": ranks, "batch": batch},
                        **{"repetition": repetition, "rank": rank, "phase": phase},
                    },
                    **{"run": f"{benchmark}{method}{ranks}{repetition}", "cpu_seconds": 1.0},
                    "seconds": [phases[phase]] * iterations,
                    "evaluations": iterations * ranks * batch * work.evaluations,
                    **{"samples": 60000, "bytes": 1, "messages": round(iterations * work.vectors)},
                    **{"parameters": N, "host": "here", "cores": cores, "threads": 1},
                    **{"oversubscribed": ranks > cores, "local_steps": steps},
                    **{"date": "2026-11-23", "commit": "abc", "versions": {"python": "3.11"}},
                }


def micro_rows() -> Iterator[Row]:
    for link, own in LINKS.items():
        for mpi in ("yield", "tuned") if link == "none" else ("tuned", "defaults"):
            for ranks in (2, 4) if link != "none" else (2,):
                for nbytes in (4, 4096, 473_128, 4_194_304):
                    # Settings and ways that are not to be used are ten times as slow.
                    usual = mpi == ("yield" if link == "none" else "tuned")
                    for through in ("comm-untimed", "message"):
                        factor = 1.0 if usual and through == "comm-untimed" else 10.0
                        seconds = factor * doubling(nbytes, ranks, own)
                        yield {
                            "settings": {
                                **{"benchmark": "micro", "operation": "allreduce"},
                                **{"through": through, "bytes": nbytes, "ranks": ranks},
                                **{"hosts": 1 if link == "none" else ranks},
                                **{"link": link, "mpi": mpi},
                            },
                            "seconds": [seconds, 0.9 * seconds, 1.2 * seconds],
                        }


def network_rows() -> Iterator[Row]:
    link = LINKS["100mbit"]
    for method, costs, steps in (("apts", "apts-scaled", 21), ("adam", "adam", None)):
        for hosts in (2, 4):
            slow = SLOWDOWN * hosts / 2
            work = work_of(costs, N, 250, steps)
            parts = iteration(work, MADE[costs], link, hosts, slowdown=slow)
            # Over four hosts the message is by recursive doubling, as micro has measured it.
            barrier = doubling(0, hosts, link)
            message = barrier + doubling(4 * (N + (60 if steps else 20)), hosts, link)
            message += barrier + doubling(SCALARS_BYTES, hosts, link) if steps else 0.0
            yield {
                "settings": {
                    **{"benchmark": "network", "hosts": hosts, "link": "100mbit"},
                    **{"method": method, "hidden": "128,128", "batch": None, "lr": None},
                    "repetition": 0,
                },
                **{"parameters": N, "local_steps": steps, "rank_batch": 250, "cores": 2},
                **{"seconds_per_epoch": 1.0, "mpi": "tuned"},
                "iteration_seconds": [9.0] + [parts.busy + message] * 5,
            }
    yield {"settings": {"benchmark": "network", "method": "ddp-adam", "hosts": 2}}


def made_rows() -> list[Row]:
    """All of a measurement, four ranks on two cores included, twice as slow as they should be."""
    rows: list[Row] = []
    for method in MADE:
        steps = STEPS.get(method)
        for ranks in (1, 2, 4):
            batch = 250 if steps else 500 // ranks
            own = steps and steps // ranks
            rows += scaling_rows("strong", method, ranks, batch, own)
            rows += scaling_rows("weak", method, ranks, 250, steps and steps // 2)
    for row in rows:
        if row["settings"]["ranks"] == 4:
            row["seconds"] = [2 * t for t in row["seconds"]]
    return [*rows, *micro_rows(), *network_rows()]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return made_rows()


def test_the_fit_finds_the_parameters_that_made_the_rows(rows: list[Row]) -> None:
    measured = scaling(rows)
    assert {m.ranks for m in measured} == {1, 2}  # more ranks than cores are not used
    alone = [m for m in measured if m.ranks == 1]
    for method, made in MADE.items():
        found, donors = costs_of(method, "128,128", 250, N, alone)
        assert {m.method for m in donors} == {method}
        for name in ("gradient", "evaluation", "sample", "other"):
            assert getattr(found, name) == pytest.approx(getattr(made, name), abs=1e-12), name
        if method in STEPS:  # two numbers of steps tell the parts of the algebra apart
            assert found.step == pytest.approx(made.step)
            assert found.join == pytest.approx(made.join)
    # A network that was not measured: in proportion to its parameters.
    large, _ = costs_of("adam", "1024,784", 250, 10 * N, alone)
    assert large.gradient == pytest.approx(10 * MADE["adam"].gradient)
    assert large.other == pytest.approx(MADE["adam"].other)
    # A method that was not: from the others of its family.
    assert {m.method for m in costs_of("sgd", "128,128", 250, N, alone)[1]}.isdisjoint({"apts-sr1"})
    with pytest.raises(InputError, match="one rank"):
        costs_of("adam", "128,128", 250, N, [])


def test_a_line_through_measured_points() -> None:
    assert line([250, 500], [3.0, 5.0]) == pytest.approx((1.0, 0.008))
    assert line([250, 250], [3.0, 5.0]) == pytest.approx((0.0, 0.016))  # one size: no intercept
    assert line([1, 10], [1.0, 100.0])[0] == 0.0  # never negative
    assert line([1, 10], [5.0, 4.0]) == (4.5, 0.0)


def test_the_model_predicts_what_it_made(rows: list[Row]) -> None:
    predictions, left = predict(scaling(rows), network(rows), fits_of(rows))
    assert not left
    kinds = [(one.of.of["benchmark"], one.of.of["method"], one.of.ranks) for one in predictions]
    assert len(kinds) == 12
    assert sorted(kinds) == sorted(
        [
            *((benchmark, method, 2) for benchmark in ("strong", "weak") for method in MADE),
            *(("network", method, hosts) for method in ("apts", "adam") for hosts in (2, 4)),
        ]
    )
    for one in predictions:
        assert one.parts.total == pytest.approx(one.measured, rel=1e-9), one.of.of
        assert one.slowdown == pytest.approx(SLOWDOWN * (2 if one.of.ranks == 4 else 1))
        assert one.alone < one.parts.total


@pytest.mark.parametrize("method", MADE)
def test_a_prediction_has_not_seen_what_it_predicts(rows: list[Row], method: str) -> None:
    before, _ = predict(scaling(rows), network(rows), fits_of(rows))
    changed = copy.deepcopy(rows)
    for row in changed:
        settings = row["settings"]
        if settings.get("method") == method and settings.get("ranks", 1) > 1:
            row["seconds"] = [3 * t for t in row["seconds"]]
        if "iteration_seconds" in row:
            row["iteration_seconds"] = [3 * t for t in row["iteration_seconds"]]
    after, _ = predict(scaling(changed), [], fits_of(changed))
    own = [(a, b) for a, b in zip(before, after, strict=False) if a.of.method == method]
    assert len(own) == 2
    for a, b in own:
        assert b.parts.total == pytest.approx(a.parts.total)
        assert b.measured == pytest.approx(3 * a.measured)


def test_stragglers_are_waited_for(rows: list[Row]) -> None:
    chance = np.random.default_rng(5)
    noisy = copy.deepcopy(rows)
    for row in noisy:
        if row["settings"].get("phase") == "gradient":
            row["seconds"] = (np.array(row["seconds"]) * chance.gamma(50.0, 0.02, 12)).tolist()
    predictions, _ = predict(scaling(noisy), [], fits_of(noisy))
    assert all(one.parts.imbalance > 0.0 for one in predictions)
    errors = [abs(one.error) for one in predictions]
    assert np.median(errors) < 0.15


def test_a_run_that_is_not_all_there_is_left_out(rows: list[Row]) -> None:
    def is_one(row: Row) -> bool:
        s = row["settings"]
        return (s["benchmark"], s.get("method"), s.get("ranks")) == ("strong", "adam", 2)

    own = [row for row in rows if is_one(row)]
    assert len(scaling(own)) == 1
    assert len(scaling(own)[0].seconds) == 24
    assert len(scaling(own[:-1])[0].seconds) == 12
    assert scaling(own[:-1][::2]) == []


# ---- projections -------------------------------------------------------------------------------


def test_projections_are_monotone_where_they_must_be(rows: list[Row]) -> None:
    plan = read_plan(CONFIG)
    found = project(plan, [m for m in scaling(rows) if m.ranks == 1])
    computes = {one.compute for one in found}
    assert MEASURED in computes
    assert len(computes) == 2
    assert len(found) == 2 * 4 * 4 * len(plan.methods)
    by = {(p.compute, p.method, p.parameters, p.network): p for p in found}
    names = [network.name for network in plan.networks]
    for (compute, method, parameters, network_name), one in by.items():
        ranks = sorted(one.epoch)
        assert ranks[0] == 1
        assert one.efficiency[1] == 1.0
        # A faster network is never slower, nor is a larger network of neurons faster.
        if network_name != names[-1]:
            faster = by[compute, method, parameters, names[names.index(network_name) + 1]]
            assert all(faster.epoch[n] <= one.epoch[n] for n in ranks)
        if parameters != plan.parameters[-1]:
            size = plan.parameters[plan.parameters.index(parameters) + 1]
            larger = by[compute, method, size, network_name]
            assert all(larger.epoch[n] > one.epoch[n] for n in ranks)
        # What a message costs grows with ranks; what a rank computes for an epoch shrinks.
        messages = [one.parts[n].vector for n in ranks]
        assert messages == sorted(messages)
        assert one.limit in ranks
    # Adam with a message a step ends where a rank would have no sample, and pays no longer than
    # apts where messages are dear.
    adam = by[MEASURED, "adam", 118_282, "1 Gbit/s"]
    assert max(adam.epoch) == 256
    assert adam.limit < by[MEASURED, "apts", 118_282, "1 Gbit/s"].limit


def test_how_far_a_method_pays() -> None:
    assert pays_to({1: 8.0, 2: 4.1, 4: 2.6, 8: 2.0, 16: 1.0}, 1.5) == 4
    assert pays_to({1: 8.0, 2: 7.0, 4: 1.0}, 1.5) == 1
    assert pays_to({1: 8.0, 2: 4.0}, 1.5) == 2


# ---- the command -------------------------------------------------------------------------------


def write_rows(folder: Path, rows: list[Row]) -> None:
    for benchmark in ("strong", "weak", "micro", "network"):
        own = [json.dumps(row) for row in rows if row["settings"]["benchmark"] == benchmark]
        (folder / f"{benchmark}.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")


def small_config(path: Path) -> Path:
    text = CONFIG.read_text(encoding="utf-8")
    for name, value in (("ranks", "[2, 4, 8]"), ("parameters", "[10_000_000]")):
        start = text.index(f"\n{name} = ") + 1
        text = text[:start] + f"{name} = {value}" + text[text.index("\n", start) :]
    # Two networks are enough.
    last, end = text.index('[[networks]]\nname = "100'), text.index("# label:")
    path.write_text(text[:last] + text[end:], encoding="utf-8")
    return path


def test_the_command_writes_its_pages(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path, rows)
    config = small_config(tmp_path / "small.toml")
    assert main(["project", "--out", str(tmp_path), "--config", str(config)]) == 0
    written = read([tmp_path / "project.jsonl"])
    predictions = [row for row in written if row["settings"]["kind"] == "prediction"]
    assert len(predictions) == 12
    for row in predictions:
        assert not {"rank", "phase", "repetition"} & set(row["settings"]["of"])
        assert row["predicted"] == pytest.approx(row["measured"], rel=1e-3)
    projections = [row for row in written if row["settings"]["kind"] == "projection"]
    assert {row["settings"]["ranks"] for row in projections} == {1, 2, 4, 8}
    assert len(projections) == 2 * 1 * 2 * 6 * 4
    keys = {
        tuple(row["settings"][k] for k in ("method", "parameters", "network", "ranks"))
        for row in projections
    }
    assert len(keys) == len(projections)
    assert all(row["seconds_per_epoch"] > 0 < row["efficiency"] for row in projections)

    page = (tmp_path / "project.md").read_text(encoding="utf-8")
    assert "Median error 0.0 % of 12 configurations, goal 15 %: met" in page
    head, _, tail = page.partition("## Projections")
    assert "projection" not in head.replace("then projected", "")
    assert "**Everything from here on is a projection.**" in tail
    assert all("Projection" in part for part in tail.splitlines() if part.startswith("###"))
    assert "an assumption, not measured" in tail
    drawn = {path.name for path in tmp_path.glob("project_*.png")}
    assert {"project_measured.png", "project_time.png", "project_efficiency.png"} <= drawn
    assert all(f"({name})" in page for name in drawn)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["project", *map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


def test_missing_and_bad_input_give_one_line(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    told = complaint(capsys, "--out", tmp_path)
    assert "strong.jsonl: no such results; run python -m benchmarks strong first" in told
    write_rows(tmp_path, rows)
    (tmp_path / "micro.jsonl").unlink()
    (tmp_path / "network.jsonl").unlink()
    told = complaint(capsys, "--out", tmp_path)
    assert "micro.jsonl: no such results; run python -m benchmarks micro first" in told
    told = complaint(capsys, tmp_path / "strong.jsonl", "--out", tmp_path)
    assert "run micro first" in told
    bad = tmp_path / "bad.jsonl"
    for text in ("{", "[]", '{"settings": {}}'):
        bad.write_text(text + "\n", encoding="utf-8")
        assert "line 1 is not a row" in complaint(capsys, bad, "--out", tmp_path)
    row = next(row for row in rows if row["settings"]["benchmark"] == "weak")
    network = next(row for row in rows if row["settings"]["benchmark"] == "network")
    for broken in (
        {k: v for k, v in row.items() if k != "oversubscribed"},
        {**row, "settings": {k: v for k, v in row["settings"].items() if k != "phase"}},
        {k: v for k, v in network.items() if k != "parameters"},
    ):
        micro = [json.dumps(r) for r in rows if r["settings"]["benchmark"] == "micro"]
        bad.write_text("\n".join([json.dumps(broken), *micro]), encoding="utf-8")
        assert "is missing" in complaint(capsys, bad, "--out", tmp_path)
    zero = [{**r, "evaluations": 0} for r in rows if r["settings"]["benchmark"] == "weak"]
    bad.write_text("\n".join(map(json.dumps, zero)), encoding="utf-8")
    assert "evaluations 0.0 is not positive" in complaint(capsys, bad, "--out", tmp_path)
    bad.write_text(
        "".join(json.dumps(r) + "\n" for r in rows if r["settings"].get("ranks") != 1),
        encoding="utf-8",
    )
    assert "no run of strong or weak on one rank" in complaint(capsys, bad, "--out", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("pays = 1.5", "pays = 1", "pays must be above 1"),
        ("pays = 1.5", "pays = 'much'", "pays = 'much' must be of type float"),
        ("pays = 1.5", "", "pays is missing"),
        ("ranks = [2, 4, 8]", "ranks = [2, 8]", "without a gap"),
        ("latency = 35e-6", "latency = -1", "latency must be"),
        ('name = "10 Gbit/s"', 'name = "1 Gbit/s"', "names of their own"),
        ('method = "sgd"', 'method = "newton"', "method is none of apts, adam"),
        ("local_steps = 20", "local_steps = 0", "local_steps are for local methods"),
        ("flops = 20e12", "flops = 0", "rates must be positive"),
    ],
)
def test_a_bad_configuration_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, told: str
) -> None:
    path = small_config(tmp_path / "small.toml")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert told in complaint(capsys, "--config", path, "--out", tmp_path)
