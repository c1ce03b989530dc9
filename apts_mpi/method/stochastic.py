"""APTS under sampling noise: the stochastic family, which training uses by default.

N subdomains, one or several per rank. With Delta the radius of a local step in the scaled metric,
one outer iteration from theta_k is (docs/method.md has the reasons; the numbers are those of the
comments):

1. Local trust-region steps of every subdomain from theta_k, each on a fresh minibatch of its part
   of the data, the first one on the gradient that the last iteration's control batch has left.
2. The corrections join by one Allreduce, averaged by samples: d_k, which also becomes the first
   moment of every subdomain's next steps. On it Nesterov's momentum, if any, on what was taken
   before: u_k = mu u_{k-1} + d_k, correction s_k = d_k + mu u_k, with mu less than its whole where
   the angle between d_k and u_{k-1} is wide.
3. A control batch c that no correction has seen: f_c(theta_k), f_c(theta_k + s_k), and the slope
   there, <g_c(theta_k + s_k), s_k>. With these three the loss along s_k is a parabola, which
   promises minus its slope at theta_k.
4. theta_k + s_k is taken unless its loss rises above the largest of the last few by more than their
   spread; otherwise theta_k is restored bit for bit and Delta shrinks.
5. Delta follows rho, actual over promised reduction, both smoothed.
6. The iterates' average, late ones weighing more, is what ``averaged`` puts into the network.

Messages of an outer iteration: one vector of length n, one of scalars. The first one also
broadcasts theta and joins one gradient to search the first radius along, with forward evaluations.
Besides parameters and gradient a rank has six vectors: m, v, theta_k, message, u, average; three
more where corrections are compressed, whose residuals count for accepted ones only, and on a GPU
three more, with up to 32 minibatches, to take steps ahead. With several
subdomains m, v and the gradient are each subdomain's own, and steps 1 and 3 run over them one after
another.

An iteration takes one minibatch at a time and keeps what it needs between, as a generator: so the
loop that draws them may be the program's or a user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import interface
from apts_mpi.method.first_radius import along_signs
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.frame import Method
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import StochasticOptions, first_radius
from apts_mpi.method.state import StochasticNumbers
from apts_mpi.method.subdomain import SampledSubdomain
from apts_mpi.trust_region.objective import Batch, Draw
from apts_mpi.trust_region.radius import NoisyRule, SmoothedRatio
from apts_mpi.trust_region.scaled import ScaledSolver

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI

_BRACKET = 2.0  # the search doubles: where the loss stops falling lies up to so many reaches away
_AGREEMENT = 2.0  # the cosine from which on momentum is whole is one over this


class StochasticAPTS(Method, options=StochasticOptions):
    """The optimizer, one outer iteration per ``step``.

    Every rank builds it over its own copy of the same network and calls ``step`` with its own
    minibatches; the parameters stay equal on all ranks.

    Args:
        parameters: of the network, float32, on one device; rank 0's values are broadcast.
            Or already flat, as ``FlatNetwork`` makes them.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them,
            which need the same number of threads and the same kind of device: what they compute
            redundantly must round alike.
        options: the fields of ``StochasticOptions`` (options.py), which has what they mean.

    Raises:
        TypeError, ValueError: of what is given something cannot be used; the line has a remedy.
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        flat: the parameters and gradients as vectors. options: as given, with the defaults.
        now: the numbers of the present iterate, ``radius`` and ``iterations`` among them.
        average: (n,) float32, weighted average of the iterates.
        turn: the subdomain whose minibatch ``take`` needs next.
    """

    FORGETS: ClassVar[str] = "the gradient at the iterate"
    RESIZED: ClassVar[set[str]] = {*Method.RESIZED, "shared"}

    options: StochasticOptions
    now: StochasticNumbers
    rule: NoisyRule
    _subdomains: list[SampledSubdomain]

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | FlatParameters,
        *,
        comm: Comm | MPI.Comm | None = None,
        **options: Any,
    ) -> None:
        given = StochasticOptions(**options)
        numbers = StochasticNumbers(radius=first_radius(given.radius))
        super().__init__(parameters, comm, given, numbers)
        flat = self.flat
        self.shared = given.shared and self.several
        ahead = flat.vector.is_cuda if given.ahead is None else given.ahead
        kept = [torch.zeros_like(flat.vector) for _ in range(3 if ahead else 0)]
        solver = partial(
            ScaledSolver,
            flat.vector,
            flat.gradient,
            steps=given.local_steps,
            kept=kept,
            waiting=partial(self.comm.clock.phase, "gradient"),
        )
        alone = given.subdomains == 1
        self._subdomains = [
            SampledSubdomain(flat, self._messages, solver(), alone=alone)
            for _ in range(given.subdomains)
        ]
        self._moved = torch.zeros_like(flat.vector)  # u
        self.average = flat.vector.clone()
        self._ratio = SmoothedRatio(self.rule.smoothing)
        self._left = 0  # torch's count of changes to the gradient, as the last step left it
        self._course: Generator[None, Batch, Iteration] | None = None  # the iteration in progress
        self.turn = 0

    # ---- the public calls ------------------------------------------------------------------

    def step(self, *batches: Callable[[], tuple[Callable[[], Tensor], int]]) -> Iteration:
        """One outer iteration; every rank calls it.

        Args:
            batches: of each subdomain of this rank, a function that gives a closure that returns
                the mean loss over the subdomain's next minibatch, a scalar tensor, without calling
                ``backward``; and that minibatch's samples. Called ``local_steps`` times, as a rule.
                A closure may be called several times and has to give the same loss at the same
                parameters: what it draws from the default generators of torch, numpy and ``random``
                (dropout, say) is the same each time, what it draws from others is not.

        The gradient it leaves is the next call's first; where it was changed in between, by a
        ``backward`` or by clipping, the next call evaluates one of its own.

        Raises:
            FloatingPointError: on every rank, if the loss at the iterate is not finite on a control
                batch. A local minibatch whose loss is not finite is passed over.
        """
        interface.require_functions(batches, self.options.subdomains)
        self.flat.check_views()
        if self.flat.gradient._version != self._left and self.options.subdomains == 1:
            self.now.ready = False

        def drawing(give: Callable[[], tuple[Callable[[], Tensor], int]]) -> Draw:
            def draw() -> Batch:
                closure, samples = interface.minibatch(give)
                return self._closures.objective(closure), samples

            return draw

        with self._closures.called():
            result = self.iterate(*map(drawing, batches))
        self._left = self.flat.gradient._version
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing, for loops that call it: a step makes its gradients by itself."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the average of the iterates: to evaluate, or to save it.

        It is not to be nested, nor is a step to be taken within.

        Raises:
            RuntimeError: an iteration is in progress.
        """
        self._require_between()
        theta, iterate = self.flat.vector, self._messages.vector  # which is free between steps
        iterate.copy_(theta)
        theta.copy_(self.average)
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            theta.copy_(iterate)
            torch.clear_autocast_cache()

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; each subdomain's minibatches are drawn as they are needed."""
        if len(draws) != len(self._subdomains):
            raise ValueError(f"minibatches of {len(draws)} subdomains, not {len(self._subdomains)}")
        self._give_up()
        result = None
        try:
            while result is None:
                result = self.take(draws[self.turn]())
        finally:
            self._give_up()
        return result

    def take(self, batch: Batch) -> Iteration | None:
        """The next minibatch of the subdomain ``turn``; the iteration, where that completes it.

        What it evaluates is done when it returns, but for the losses of local steps on a GPU.
        """
        if self._course is None:
            self._course = self._iteration()
            next(self._course)
        try:
            self._course.send(batch)
        except StopIteration as completed:
            self._course, self.turn = None, 0
            done: Iteration = completed.value
            return done
        except BaseException:  # nothing can be sent to what has ended
            self._give_up()
            raise
        return None

    def _give_up(self) -> None:
        """Leave an iteration that something has ended before its end, from where it began."""
        if self._course is not None:
            self._course.close()
            self.flat.vector.copy_(self._start)
            self.now.ready = False
        self._course, self.turn = None, 0

    def _require_between(self) -> None:
        """The iterate, and vectors that an iteration uses, are only there between iterations."""
        if self._course is not None:
            raise RuntimeError("amid an iteration: wait until take has returned one")

    # ---- the method ------------------------------------------------------------------------

    def _iteration(self) -> Generator[None, Batch, Iteration]:
        """One outer iteration; each ``yield`` is a minibatch of the subdomain ``turn``."""
        now, theta, start = self.now, self.flat.vector, self._start
        self._messages.work = 0.0
        start.copy_(theta)
        if not now.ready:
            yield from self._evaluate_start()

        # 1. each subdomain's local steps, each on a fresh minibatch
        d, rows = self._messages.vector, list[tuple[float, ...]]()
        for k, own in enumerate(self._subdomains):
            self.turn = k
            own.restore_gradient()
            with self.comm.clock.phase("algebra", "local steps"):
                local = yield from own.local.run(
                    start=start, loss=own.loss, samples=own.samples, radius=now.radius
                )
            self._messages.count(local.evaluations)
            theta.sub_(start).mul_(local.samples)
            (d.copy_ if k == 0 else d.add_)(theta)
            theta.copy_(start)
            own.take((yield))
            before = own.samples * own.loss_here(False)
            rows.append((local.samples, own.samples, before, local.accepted, local.tried))
        now.ready = False

        # 2. the corrections in one message, and behind them the control batch's loss at theta_k
        seen, controlled, before, *steps = self._messages.join(*rows)
        if not controlled > 0:
            raise ValueError("the ranks' batches have no samples")
        before = self._require_finite(before / controlled)
        if steps[0] == 0:
            return self._unmoved(before, steps[1])
        d.div_(seen)
        if self.shared:
            for own in self._subdomains:
                own.local.share(d, now.radius)
        mu = self._momentum(d)
        self._moved.mul_(mu).add_(d)
        s = d.add_(self._moved, alpha=mu)  # in place of d

        # 3. the joined correction on trial, on samples it has not seen
        theta.add_(s)
        after, slope = self._evaluate_trial(s, controlled)
        actual = before - after
        promised = 2.0 * actual + slope  # minus the slope of the parabola at theta_k

        # 4. taken or restored
        self._losses.append(before)
        noise = max(self._losses) - min(self._losses)
        accepted = math.isfinite(slope) and after <= max(self._losses) + noise
        if accepted:
            now.ready = True
            now.accepted += 1
            self._messages.keep()
        else:
            theta.copy_(start)
            self._messages.drop()
            self._moved.zero_()

        # 5. the radius
        rho = self._adapt(accepted, actual, promised, slope)

        # 6. the average
        if accepted:
            self.average.lerp_(theta, self._weight())
        return self._done(
            noisy=True,
            loss=after if accepted else before,
            rho=rho,
            accepted=accepted,
            local_reduction=promised,
            steps=(steps[0], steps[1]),
        )

    def _evaluate_start(self) -> Generator[None, Batch, None]:
        """Losses and gradients at theta_k on a minibatch each; the first time, the radius too."""
        for k, own in enumerate(self._subdomains):
            self.turn = k
            own.take((yield))
        searching, direction = math.isnan(self.now.reach), self._messages.vector
        if searching:
            direction.zero_()
        for own in self._subdomains:
            own.loss = own.evaluate(with_gradient=True)
            if searching and own.samples:  # the gradient, summed over samples
                direction.add_(own.gradient * own.samples)
        if searching:
            self._search()
        self.now.ready = True

    def _evaluate_trial(self, s: Tensor, controlled: float) -> tuple[float, float]:
        """f_c and the slope along s (n,), here; the gradients serve the next iteration's steps.

        Args:
            controlled: samples of all control batches.
        """
        rows = []
        for own in self._subdomains:
            own.loss = own.evaluate(with_gradient=True)
            slope = float(torch.dot(own.gradient, s)) if own.samples else 0.0
            rows.append((own.samples * own.loss, own.samples * slope))
        loss, slope = self._messages.sum(*rows)
        return loss / controlled, slope / controlled

    def _unmoved(self, loss: float, tried: float) -> Iteration:
        """The end of an iteration in which on no rank anything has moved."""
        self._messages.drop()
        self.now.radius = max(self.now.radius / 4.0, self.rule.minimum)
        self._moved.zero_()
        self._ratio.reset()
        return self._done(
            noisy=True, loss=loss, accepted=False, local_reduction=math.nan, steps=(0, tried)
        )

    def _momentum(self, d: Tensor) -> float:
        """mu, less where the corrections turn away from what was taken before; (n,)."""
        if self.options.momentum == 0.0:
            return 0.0
        moved = self._moved
        lengths = float(torch.linalg.vector_norm(d)) * float(torch.linalg.vector_norm(moved))
        if not lengths > 0.0:
            return 0.0
        agreement = float(torch.dot(d, moved)) / lengths
        return self.options.momentum * min(max(_AGREEMENT * agreement, 0.0), 1.0)

    def _adapt(self, accepted: bool, actual: float, promised: float, slope: float) -> float:
        """Move Delta; returns the smoothed ratio."""
        if not accepted:
            self._ratio.reset()
            self.now.radius = self.rule.after_rejection(self.now.radius, promised, slope)
            return math.nan if not math.isfinite(actual) else actual / max(promised, abs(actual))
        rho = self._ratio.update(actual, promised)
        self.now.radius = min(self.rule.update(self.now.radius, rho), _BRACKET * self.now.reach)
        return rho

    def _weight(self) -> float:
        """Of the newest iterate in the average (Shamir and Zhang, arXiv 1212.1824)."""
        averaging = self.options.averaging
        if math.isinf(averaging):
            return 1.0
        return (1.0 + averaging) / (self.now.accepted + averaging)

    def _search(self) -> None:
        """The first radius, and how far it may grow: along the signs of the joined gradient.

        Costs a vector message, and forward evaluations with scalar messages.
        """
        now, direction = self.now, self._messages.vector
        rows = [(own.samples * own.loss, own.samples) for own in self._subdomains]
        losses, total = self._messages.join(*rows, exact=True)
        if not total > 0:
            raise ValueError("the ranks' batches have no samples")
        loss = self._require_finite(losses / total)
        self._require_finite(loss, gradient=bool(direction.isfinite().all()))

        def loss_here() -> float:
            rows = [(own.samples * own.loss_here(False),) for own in self._subdomains]
            return self._messages.sum(*rows)[0] / total

        found = along_signs(
            self.flat.vector,
            self._start,
            direction,
            loss_here,
            loss=loss,
            slope=float(direction.abs().sum(dtype=torch.float64)) / total,
            weights=self.flat.weight_scale(),
        )
        now.reach = found.reach
        if self.comm.rank == 0:
            found.report(now.radius)
        now.radius = found.longest if math.isnan(now.radius) else min(now.radius, found.longest)

    # ---- state -----------------------------------------------------------------------------

    def _vectors(self) -> dict[str, Tensor]:
        return {"moved": self._moved, "average": self.average}

    def state_dict(self) -> dict[str, Any]:
        """As the frame's; the smoothed reductions as well."""
        self._require_between()
        return {**super().state_dict(), "ratio": [self._ratio.actual, self._ratio.promised]}

    def _take_over(self, state: dict[str, Any], *, resized: bool) -> None:
        self._give_up()
        super()._take_over(state, resized=resized)
        self._ratio.actual, self._ratio.promised = map(float, state["ratio"])
        self._left = self.flat.gradient._version
        if resized:
            self.now.ready = False
