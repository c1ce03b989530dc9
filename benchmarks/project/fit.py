"""The cost model's parameters from what was measured.

What a rank does by itself comes from runs on one rank, messages from ``micro``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from apts_mpi.errors import InputError
from benchmarks.harness.hockney import Hockney, fit
from benchmarks.harness.results import Row
from benchmarks.project.model import PUBLISHED, Costs, Link
from benchmarks.project.rows import Measured
from benchmarks.project.spread import Spread, spread

# Ways through which messages were measured: those without a barrier of their own first.
THROUGH = ("comm-untimed", "mpi4py", "comm", "message")
FAR = 1.5  # measured points this factor apart determine a line


def typical(values: Iterable[float]) -> float:
    """The median: other load on the machine disturbs it least."""
    return float(np.median(np.asarray(list(values), dtype=float)))


# ---- what a rank does by itself ----------------------------------------------------------------


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, neither negative, of least relative deviation.

    Where the x are within a factor of FAR they say nothing of an intercept, which is then 0.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    through_zero = (0.0, typical(ys / xs))
    if xs.max() < FAR * xs.min():
        return through_zero
    scaled = np.stack([1.0 / ys, xs / ys], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(scaled, np.ones(len(ys)), rcond=None)
    if intercept < 0.0:
        return through_zero
    if slope < 0.0:
        return typical(ys), 0.0
    return float(intercept), float(slope)


def costs_of(
    method: str, hidden: str, batch: float, parameters: int, alone: Sequence[Measured]
) -> tuple[Costs, list[Measured]]:
    """What a rank of this method takes by itself, and the configurations that show it.

    Of runs on one rank those of the same method, else of any; of the same network, else of the one
    nearest in parameters, compute and algebra in proportion to them. Of these, the compute is that
    of the same minibatch where it was measured, else of a line over minibatches.

    Args:
        alone: configurations of one rank.

    Raises:
        InputError: there are none.
    """
    if not alone:
        raise InputError("no run of strong or weak on one rank: the model has nothing to go by")
    same = [m for m in alone if m.method == method]
    if not same:  # the published family's algebra is like no other
        same = [m for m in alone if (m.method in PUBLISHED) == (method in PUBLISHED)] or [*alone]
    near = min(
        same, key=lambda m: (m.hidden != hidden, abs(math.log(m.parameters / parameters)))
    ).parameters
    found = [m for m in same if m.parameters == near]
    scale = parameters / near
    batches = [m for m in found if m.work.batch == batch] or found
    evaluation, gradient = line(
        [m.work.batch for m in batches],
        [typical(m.own["gradient"]) * m.work.batch / m.samples for m in batches],
    )
    join, step = line([m.work.steps for m in found], [typical(m.own["algebra"]) for m in found])
    costs = Costs(
        gradient=scale * gradient,
        evaluation=scale * evaluation,
        step=scale * step,
        join=scale * join,
        sample=typical(typical(m.own["data"]) / (m.work.draws * m.work.batch) for m in found),
        other=typical(typical(m.own["other"]) for m in found),
        spread=_spread(found),
    )
    return costs, found


def _spread(found: Sequence[Measured]) -> Spread:
    """Of the calmer half of the runs, each iteration relative to its run's median.

    The other half shows more of other load on the machine than of the method, as with medians.
    """
    evaluations = found[0].work.evaluations
    runs = []
    for m in found:
        scale = math.sqrt(m.work.evaluations / evaluations)  # as Spread.over
        runs += [scale * (own / typical(own) - 1.0) for own in m.busy]
    runs.sort(key=lambda own: float(np.std(own)))
    calm = np.concatenate(runs[: math.ceil(len(runs) / 2)])
    return spread(np.maximum(1.0 + calm, 0.0).tolist(), evaluations)


# ---- messages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted(Link):
    """A measured network: by its fits where there is one for as many ranks, else by formula.

    Attributes:
        fits: by ranks, one or more.
    """

    fits: dict[int, Hockney] = field(default_factory=dict)

    def seconds(self, nbytes: float, ranks: int) -> float:
        """Of an Allreduce."""
        if ranks in self.fits:
            return max(self.fits[ranks].seconds(nbytes), 0.0)
        return super().seconds(nbytes, ranks)

    def barrier(self, ranks: int) -> float:
        """As long as an Allreduce of nothing: both are lg p messages on the way."""
        return self.seconds(0.0, ranks) if ranks in self.fits else super().barrier(ranks)


def fitted(fits: dict[int, Hockney]) -> Fitted:
    """From fits by ranks; alpha and beta from that of most ranks.

    Over p ranks the shortest messages take lg p latencies, and of long ones 2 (p - 1) / p of their
    bytes cross the link: the lower bounds that the algorithms reach. Adding is in the bandwidth.
    """
    ranks = max(fits)
    own = fits[ranks]
    start = max(own.seconds(0.0), 0.0)
    slope = max(own.seconds(1e6) - own.seconds(0.0), 0.0) / 1e6
    alpha = start / math.ceil(math.log2(ranks))
    return Fitted(alpha, slope * ranks / (2 * (ranks - 1)), fits=fits)


def fits_of(rows: Iterable[Row]) -> dict[tuple[int, str, str], Fitted]:
    """Allreduce of ``micro`` by hosts, link and MPI settings, through what is likest to ours.

    Raises:
        InputError: rows cannot be fitted.
    """
    grouped: dict[tuple[tuple[int, str, str], int, str], dict[int, list[float]]] = {}
    for row in rows:
        s = row["settings"]
        if s["operation"] != "allreduce" or row.get("oversubscribed") or s["ranks"] < 2:
            continue
        place = (s["hosts"], str(s.get("link", "none")), str(s.get("mpi", "")))
        by_size = grouped.setdefault((place, s["ranks"], s["through"]), {})
        by_size.setdefault(s["bytes"], []).extend(row["seconds"])
    fits: dict[tuple[int, str, str], dict[int, Hockney]] = {}
    for name in reversed(THROUGH):  # the first counts
        for (place, ranks, through), sizes in grouped.items():
            if through != name or len(sizes) < 2:
                continue
            try:
                found = fit(sorted(sizes), [typical(sizes[b]) for b in sorted(sizes)])
            except ValueError as error:
                raise InputError(f"rows of micro, {place[1]}, {name}: {error}") from None
            fits.setdefault(place, {})[ranks] = found
    return {place: fitted(by_ranks) for place, by_ranks in fits.items()}
