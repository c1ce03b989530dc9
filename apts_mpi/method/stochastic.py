"""APTS under sampling noise: the stochastic family, which training uses by default.

N subdomains, one or several per rank; Delta is the radius of a local step (metric.py). One
outer iteration from theta_k is (docs/method.md has the reasons; comments refer to the numbers):

1. Local steps take every subdomain i from theta_k to theta_i, each step on a fresh minibatch of its
   data (trust_region/scaled.py), the first on the gradient that the last control batch has left.
2. One Allreduce joins the corrections, n_i the samples that subdomain i has seen:
   d_k = sum n_i (theta_i - theta_k) / sum n_i, which with the option ``shared`` also becomes the
   first moment of every subdomain's next steps. s_k is d_k, or more with momentum (momentum.py).
3. The control batch C, each subdomain's next minibatch, which no correction has seen:
   ared = f_C(theta_k) - f_C(theta_k + s_k) and the slope <g_C(theta_k + s_k), s_k>. The loss along
   s_k as a parabola has the slope -pred at theta_k, and so predicts pred = 2 ared + slope.
4. theta_k + s_k is accepted where f_C there is at most F + (F - F'), F the largest and F' the least
   f_C(theta_k) of the last few iterations; otherwise theta_k is restored bit for bit, and u = 0.
5. Delta follows rho = ared / pred, both smoothed; a rejection halves it for a few iterations.
6. The iterates' average, the j-th accepted one entering with the weight (1 + h) / (j + h), h the
   option ``averaging`` (arXiv 1212.1824), is what ``averaged`` puts into the network.

Messages of an outer iteration: one vector of length n, one of scalars. The first one also
broadcasts theta and joins one gradient to search the first radius along, with forward evaluations.
Besides parameters and gradient a rank has six vectors: m, v, theta_k, message, u, average; three
more where corrections are compressed, whose residuals count for accepted ones only, and on a GPU
three more, with up to 32 minibatches, to take steps ahead. With several subdomains m, v and the
gradient are each subdomain's own, and steps 1 and 3 run over them one after another.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.first_radius import along_step
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.frame import Method
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.messages import require_samples
from apts_mpi.method.momentum import add_nesterov
from apts_mpi.method.options import StochasticOptions
from apts_mpi.method.state import StochasticNumbers
from apts_mpi.method.stepwise import Stepwise
from apts_mpi.method.subdomain import SampledSubdomain, hidden_matrices, is_shallow
from apts_mpi.trust_region.metric import Span
from apts_mpi.trust_region.objective import Batch
from apts_mpi.trust_region.radius import NoisyRule, SmoothedRatio

# Delta may grow to twice the reach: the search doubles, so that the minimum may lie there.
_BRACKET = 2.0


class StochasticMethod(Stepwise, Method, options=StochasticOptions, numbers=StochasticNumbers):
    """The method on fresh minibatches, one outer iteration per ``iterate``.

    Attributes:
        average: (n,) float32, the weighted average of the iterates.
    """

    LOST_ON_RESIZE: ClassVar[str] = "the gradient at the iterate"
    MAY_DIFFER_ON_RESIZE: ClassVar[set[str]] = {*Method.MAY_DIFFER_ON_RESIZE, "shared"}

    options: StochasticOptions
    now: StochasticNumbers
    rule: NoisyRule
    _subdomains: list[SampledSubdomain]

    def __init__(self, flat: FlatParameters, *, comm: Comm, **options: Any) -> None:
        super().__init__(flat, comm, options)
        given, clock = self.options, self.comm.clock
        self.shared = given.shared and self.several
        ahead = flat.vector.is_cuda if given.ahead is None else given.ahead
        kept = [torch.zeros_like(flat.vector) for _ in range(3 if ahead else 0)]
        self._subdomains = [
            SampledSubdomain(flat, self.messages, given, kept=kept, clock=clock)
            for _ in range(given.subdomains)
        ]
        self._shallow = is_shallow(hidden_matrices(given, flat))
        self._velocity = torch.zeros_like(flat.vector)  # u
        self.average = flat.vector.clone()
        self._aside = flat.vector  # while the network has the average, the iterate
        self._ratio = SmoothedRatio(self.rule.smoothing)

    @property
    def meets(self) -> bool:
        """Whether ranks of one subdomain send messages as soon as the next minibatch is there."""
        if self._running is not None:
            return self._at_control
        return math.isnan(self.now.reach) or (self.now.known and self.options.local_steps == 1)

    def set_spans(self, spans: Sequence[Span]) -> None:
        """Other settings of the parameters' spans, which end where those before did."""
        self.flat.spans = list(spans)
        for subdomain in self._subdomains:
            subdomain.solver.metric.set_spans(spans)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the average of the iterates: to evaluate, or to save it.

        It is not to be nested, nor is a minibatch to be taken within.
        """
        theta, iterate = self.flat.vector, self.messages.vector  # which is free between iterations
        iterate = iterate.copy_(theta) if self._running is None else theta.clone()
        self._aside = iterate
        theta.copy_(self.average)
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            theta.copy_(iterate)
            self._aside = theta
            torch.clear_autocast_cache()

    # ---- the method ------------------------------------------------------------------------

    def _iteration(self) -> Generator[None, Batch, Iteration]:
        """One outer iteration; each ``yield`` is a minibatch of the subdomain ``turn``."""
        now, theta, start, d = self.now, self.flat.vector, self._start, self.messages.vector
        self.messages.work = 0.0
        if not now.known:
            yield from self._evaluate_start()
            if math.isnan(now.reach):
                self._search()
            now.known = True
        radius = now.radius * self.options.cooling(self.done)

        # 1. each subdomain's local steps; then f_C(theta_k) of 3., to ride in the same message
        rows = list[tuple[float, ...]]()
        for k, subdomain in enumerate(self._subdomains):
            self.turn = k
            local = yield from subdomain.local_steps(start, radius)
            self.messages.add(k, theta.sub_(start).mul_(local.samples))  # theta as scratch
            theta.copy_(start)
            self._at_control = True
            subdomain.use((yield))
            self._at_control = False
            losses = subdomain.samples * subdomain.loss_here(False)
            rows.append((local.samples, subdomain.samples, losses, local.accepted, local.tried))
        now.known = False

        # 2. one message
        seen, controlled, losses, taken, tried = self.messages.join(*rows)
        before = self._require_finite(losses / require_samples(controlled))
        if taken == 0:  # nothing has moved on any rank
            self._reject()
            now.radius, now.ceiling = self.rule.after_rejection(now.radius, finite=False)
            return self._done(noisy=True, loss=before, accepted=False, steps=(0, tried))
        d.div_(seen)
        if self.shared:
            for subdomain in self._subdomains:
                subdomain.solver.metric.share(d, subdomain.solver.steps * radius)
        s = add_nesterov(d, self._velocity, largest=self.options.mu)

        # 3. the trial point, on samples that the correction has not seen
        theta.add_(s)
        after, slope = self._evaluate_trial(s, controlled)
        actual = before - after
        promised = 2.0 * actual + slope

        # 4. accepted or restored
        self._losses.append(before)
        largest = max(self._losses)
        accepted = math.isfinite(slope) and after <= largest + (largest - min(self._losses))
        if accepted:
            now.known = True
            now.accepted += 1
            self.messages.keep()
        else:
            self._reject()

        # 5. the radius
        rho = self._adapt(accepted, actual, promised)

        # 6. the average
        if accepted:
            self.average.lerp_(theta, self.options.weight(now.accepted))
        return self._done(
            noisy=True,
            loss=after if accepted else before,
            rho=rho,
            accepted=accepted,
            local_reduction=promised,
            steps=(taken, tried),
        )

    def _evaluate_start(self) -> Generator[None, Batch, None]:
        """Losses and gradients at theta_k on a minibatch each."""
        for k, subdomain in enumerate(self._subdomains):
            self.turn = k
            subdomain.use((yield))
        for subdomain in self._subdomains:
            subdomain.loss = subdomain.evaluate(with_gradient=True)

    def _evaluate_trial(self, s: Tensor, controlled: float) -> tuple[float, float]:
        """f_C and the slope along s (n,), here, over the samples of all control batches.

        The gradients serve the next iteration's steps.
        """
        rows = []
        for subdomain in self._subdomains:
            subdomain.loss = subdomain.evaluate(with_gradient=True)
            slope = float(torch.dot(subdomain.gradient, s)) if subdomain.samples else 0.0
            rows.append((subdomain.samples * subdomain.loss, subdomain.samples * slope))
        loss, slope = self.messages.sum(*rows)
        return loss / controlled, slope / controlled

    def _reject(self) -> None:
        """Restore theta_k bit for bit, and forget: the past says nothing about the new radius."""
        self.flat.vector.copy_(self._start)
        self.messages.drop()
        self._velocity.zero_()
        self._ratio.reset()

    def _adapt(self, accepted: bool, actual: float, promised: float) -> float:
        """Move Delta; returns the smoothed ratio."""
        now, rule = self.now, self.rule
        if not accepted:
            finite = math.isfinite(promised)
            now.radius, now.ceiling = rule.after_rejection(now.radius, finite=finite)
            return math.nan if not math.isfinite(actual) else actual / max(promised, abs(actual))
        rho = self._ratio.update(actual, promised)
        farthest = _BRACKET * now.reach
        if self._shallow:
            farthest *= self.options.room
        radius = min(rule.update(now.radius, rho, now.ceiling), farthest)
        if radius < now.radius:
            now.ceiling = 0.0
        now.radius = radius
        return rho

    def _search(self) -> None:
        """The first radius, and how far it may grow: along the signs of the joined gradient.

        Costs a vector message, and forward evaluations with scalar messages.
        """
        now, direction, subdomains = self.now, self.messages.vector, self._subdomains
        direction.zero_()
        for subdomain in subdomains:
            if subdomain.samples:  # the gradient, summed over samples
                direction.add_(subdomain.gradient * subdomain.samples)
        rows = [(subdomain.samples * subdomain.loss, subdomain.samples) for subdomain in subdomains]
        losses, total = self.messages.join(*rows, exact=True)
        loss = self._require_finite(losses / require_samples(total))
        self._require_finite(loss, gradient=bool(direction.isfinite().all()))

        def loss_here() -> float:
            rows = [(subdomain.samples * subdomain.loss_here(False),) for subdomain in subdomains]
            return self.messages.sum(*rows)[0] / total

        metric, steps = subdomains[0].solver.metric, self.options.local_steps
        numbers: Any = {"loss": loss, "samples": total, "steps": steps}
        found = along_step(self.flat, self._start, direction, metric, loss_here, **numbers)
        now.reach = found.reach
        if self.comm.rank == 0:
            found.report(now.radius)
        now.radius = found.first if math.isnan(now.radius) else min(now.radius, found.longest)

    # ---- state -----------------------------------------------------------------------------

    def _vectors(self) -> dict[str, Tensor]:
        return {"velocity": self._velocity, "average": self.average}

    def shared_state(self) -> dict[str, Any]:
        """As the frame's; the smoothed reductions as well.

        Amid an iteration it is the state that the iteration began from (with what its minibatches
        have taught the local steps): it begins anew where the state is taken up.
        """
        known = self.now.known and self._running is None
        ratio = [self._ratio.actual, self._ratio.promised]
        return {**super().shared_state(), "known": known, "ratio": ratio}

    @property
    def iterate_vector(self) -> Tensor:
        """(n,) theta_k, also amid an iteration and while the network has the average."""
        return self._aside if self._running is None else self._start

    def _restore(self, state: dict[str, Any], *, resized: bool) -> None:
        self._close()  # the parameters may be those of the state already
        super()._restore(state, resized=resized)
        self._ratio.actual, self._ratio.promised = map(float, state["ratio"])
