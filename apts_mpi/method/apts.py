"""APTS: a trust-region method preconditioned nonlinearly by the subdomains' own steps.

N subdomains, one or several per rank; subdomain d's batch has b_d samples, weight
w_d = b_d / sum b. With f = sum w_d f_d, one outer iteration from theta_k, radius Delta, is (arXiv
2502.05133; the numbers are those of the comments below):

1. f_d, g_d on the subdomain's batch; one Allreduce gives f and g.
2. Local objective, first-order consistent: f_d(theta) + <g - g_d, theta - theta_k>.
3. At most five local trust-region steps, all inside the ball around theta_k.
4. The corrections join by one Allreduce, the local reductions in the same message. "sum": local
   radius w_d Delta (Delta/N for equal parts), corrections summed; "average": local radius Delta,
   corrections averaged by weight; "adaptive": local radius Delta/a, a times the average, where
   the relaxation a >= 1 follows rho as Delta does. A share of the last accepted correction is
   added (momentum; not in the paper). All keep |s| <= Delta.
5. rho = (f(theta_k) - f(theta_k + s)) / (joined local reductions) accepts s or restores theta_k bit
   for bit, and moves Delta.
6. Global step: one trust-region step on f with its own model, from the gradient at the accepted
   point.

Messages of an outer iteration, vectors of length n + scalar messages ("full": the batch stays the
same, so that the gradient at theta_k is known from the iteration before):

| | minibatch | full |
| --- | --- | --- |
| global step on | 3 + 1 | 3 + 0 |
| global step off, consistency on | 2 + 1 | 2 + 0 |
| global step off, consistency off | 1 + 2 | 1 + 1 |

A message less than in the table: an iteration whose corrections promise no reduction has no trial,
one whose global step promises none has no second one. The first iteration also broadcasts theta
and, where no radius is given, searches one with scalar messages only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import interface
from apts_mpi.method.first_radius import along_descent
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.frame import Method
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.joined_loss import JoinedLoss
from apts_mpi.method.options import APTSOptions, first_radius
from apts_mpi.method.state import APTSNumbers
from apts_mpi.method.subdomain import BatchSubdomain
from apts_mpi.trust_region.local import (
    LOSS_NOISE,
    FirstOrder,
    LocalResult,
    LocalSolver,
    Model,
    SecondOrder,
    norm_of,
)
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.objective import Batch, Draw
from apts_mpi.trust_region.radius import RadiusRule, RelaxationRule, reduction_ratio

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI


class APTS(Method, options=APTSOptions):
    """The optimizer, one outer iteration per ``step``, in the manner of ``torch.optim``.

    Every rank builds it over its own copy of the same network and calls ``step`` with a closure
    over its own samples; the parameters stay equal on all ranks.

    Args:
        parameters: of the network, float32, on one device; rank 0's values are broadcast.
            Or already flat, as ``FlatNetwork`` makes them.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them. All
            need the same number of threads and the same kind of device: what they compute
            redundantly must round alike.
        options: the fields of ``APTSOptions`` (options.py), which has what they mean.

    Raises:
        TypeError, ValueError: of what is given something cannot be used; the line has a remedy.
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        flat: the parameters and gradients as vectors. options: as given, with the defaults.
        now: the numbers of the present iterate, ``radius`` and ``iterations`` among them.
    """

    OWN: ClassVar[tuple[str, ...]] = (*Method.OWN, "gradient")
    FORGETS: ClassVar[str] = "what is known at the iterate, the local radii and models"

    options: APTSOptions
    now: APTSNumbers
    rule: RadiusRule
    _subdomains: list[BatchSubdomain]

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | FlatParameters,
        *,
        comm: Comm | MPI.Comm | None = None,
        **options: Any,
    ) -> None:
        given = APTSOptions(**options)
        first = first_radius(given.radius)
        super().__init__(parameters, comm, given, APTSNumbers(radius=first, global_radius=first))
        self.relaxation_rule = RelaxationRule()
        self.consistency = given.consistency and self.several
        self._subdomains = [self._subdomain() for _ in range(given.subdomains)]
        self._joined = JoinedLoss(
            self._messages, self._subdomains, joins_gradients=self._needs_gradients()
        )
        self._global = self._model()
        self._step = torch.zeros_like(self.flat.vector)  # s, of the last iteration until the next

    def _subdomain(self) -> BatchSubdomain:
        flat, given = self.flat, self.options
        solver = LocalSolver(
            flat.vector,
            flat.gradient,
            self._model(),
            self.rule,
            norm=given.norm,
            steps=given.local_steps,
        )
        return BatchSubdomain(flat, self._messages, solver, alone=given.subdomains == 1)

    def _model(self) -> Model:
        given, theta = self.options, self.flat.vector
        if given.local_solver == "first-order":
            return FirstOrder(given.norm)
        return SecondOrder(LSR1(len(theta), memory=given.memory, device=theta.device))

    def _needs_gradients(self) -> bool:
        """Whether gradients join; the first radius is searched along g in any case."""
        return self.consistency or self.options.global_step or math.isnan(self.now.radius)

    # ---- the public call -------------------------------------------------------------------

    def step(
        self,
        *closures: Callable[[], Tensor],
        samples: int | Sequence[int],
        same_batch: bool = False,
    ) -> Iteration:
        """One outer iteration; every rank calls it.

        Args:
            closures: of each subdomain of this rank, returns the mean loss over its batch, a scalar
                tensor, always over the same samples during the call, without calling ``backward``.
            samples: how many samples that mean is over, of several subdomains one number each;
                weighs a subdomain among the others. With 0 the closure is not called; not all
                subdomains of all ranks may have 0.
            same_batch: the next call's batches are this call's (training on the whole shard): what
                is known at the new iterate is then not evaluated again. Of closures that draw
                random numbers (dropout) it has no effect, as their batch is another one each time.

        Raises:
            FloatingPointError: on every rank, if the loss at the iterate is not finite.
        """
        interface.require_functions(closures, self.options.subdomains, closures=True)
        each = samples if isinstance(samples, Sequence) else [samples]
        counts = [interface.count(samples) for samples in each]
        if len(counts) != len(closures):
            raise ValueError(f"samples {samples} of {len(closures)} closures")
        self.flat.check_views()
        with self._closures.called():
            objectives = [self._closures.objective(c, repeats=same_batch) for c in closures]
            return self._iterate(list(zip(objectives, counts, strict=True)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to zero; a step does it by itself."""
        self.flat.attach_gradients()
        self.flat.gradient.zero_()

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration on the next minibatch of each subdomain."""
        return self._iterate([draw() for draw in draws])

    # ---- the method ------------------------------------------------------------------------

    def _iterate(self, batches: Sequence[Batch]) -> Iteration:
        now, joined, theta, start = self.now, self._joined, self.flat.vector, self._start
        self._messages.work = 0.0
        joined.begin(batches)

        # 1. loss and gradient at theta_k; the gradients join where a term needs them
        if not now.known:
            self._evaluate_start()
        again = joined.repeats  # what is known at the new iterate holds for the next batch too
        start.copy_(theta)
        if math.isnan(now.radius):
            self._search()

        # 2. and 3. local steps on the consistent objective, gradient at theta_k known
        rows = list[tuple[float, ...]]()
        for k, own in enumerate(self._subdomains):
            with self.comm.clock.phase("algebra", "local steps"):
                local = self._local_steps(own)
            factor = 1.0 if self.options.join == "sum" else now.relaxation * own.weight
            joined.add(k, own.solver.correction, factor)
            counts = float(local.accepted), float(local.tried)
            rows.append((factor * local.reduction, own.weight * local.hits_boundary, *counts))

        # 4. corrections and local reductions in one message
        reduction, at_ball, *steps = joined.join(*rows)

        # 5. the joined correction on trial
        rho, accepted = math.nan, False
        if reduction > 0.0:
            reduction = self._add_momentum(reduction)
            torch.add(start, self._step, out=theta)
            step = self._step if self._learns() else None
            rho, accepted = self._trial(step, reduction, again or self.options.global_step)
            self._adapt(rho, at_ball >= 0.5, norm_of(self._step, self.options.norm))
        else:
            theta.copy_(start)
        now.moving = accepted
        (self._messages.keep if accepted else self._messages.drop)()

        # 6. one trust-region step on f itself
        global_rho, global_accepted = math.nan, False
        if self.options.global_step:
            global_rho, global_accepted = self._take_global_step(again)

        now.known = again
        return self._done(
            noisy=False,
            loss=now.loss,
            rho=rho,
            accepted=accepted,
            global_rho=global_rho,
            global_accepted=global_accepted,
            relaxation=now.relaxation,
            local_reduction=reduction,
            steps=(steps[0], steps[1]),
        )

    def _evaluate_start(self) -> None:
        joined = self._joined
        loss = joined.evaluate(with_gradient=True)
        gradient = not math.isfinite(loss) or joined.gradient_is_finite()
        self.now.loss = self._require_finite(loss, gradient=gradient)
        joined.keep_loss()
        joined.keep_gradient()
        self._losses.append(loss)

    def _search(self) -> None:
        """The first radius, of the global step as well."""
        now, norm = self.now, self.options.norm
        found = along_descent(self._joined, self.flat.vector, self._start, loss=now.loss, norm=norm)
        now.radius = min(max(found.length, self.rule.minimum), self.rule.maximum)
        now.global_radius = now.radius
        if found.why and self.comm.rank == 0:
            found.warn(now.radius)
        self._joined.joins_gradients = self._needs_gradients()

    def _local_steps(self, own: BatchSubdomain) -> LocalResult:
        """Inside the subdomain's own ball, such that the joined correction keeps |s| <= Delta."""
        now, solver, joined = self.now, own.solver, self._joined
        ball = (
            now.radius * own.weight if self.options.join == "sum" else now.radius / now.relaxation
        )
        if own.samples == 0:  # a subdomain without samples in this batch moves nothing
            solver.correction.zero_()
            return LocalResult(0.0, own.radius, 0, 0, False)
        if math.isnan(own.radius):
            own.radius = ball / solver.steps
        gradient = joined.g
        if not self.consistency:
            gradient = torch.sub(joined.g, own.shift, out=self.flat.gradient)
        result = solver.run(
            own.loss_here,
            start=self._start,
            loss=own.loss,
            gradient=gradient,
            shift=own.shift if self.consistency else None,
            radius=min(own.radius, ball),
            ball=ball,
        )
        own.radius = result.radius
        return result

    def _trial(
        self, step: Tensor | None, predicted: float, with_gradient: bool
    ) -> tuple[float, bool]:
        """Judge f at the present parameters; go back to ``_start`` where they are no better.

        Args:
            step: from ``_start`` to here where the global model is to learn from it.
            predicted: promised reduction. with_gradient: whether g is wanted here, if taken.
        """
        joined = self._joined
        loss = joined.evaluate(with_gradient=with_gradient)
        rho = reduction_ratio(self.now.loss, loss, predicted, noise=LOSS_NOISE)
        # The window relaxes what is taken, not what is said of the model's quality.
        windowed = reduction_ratio(max(self._losses), loss, predicted, noise=LOSS_NOISE)
        if step is not None and with_gradient:
            self._global.learn(step, joined.gradient - joined.g)
        accepted = self.rule.accepts(windowed)
        if accepted and with_gradient and not joined.gradient_is_finite():
            rho, accepted = math.nan, False
        if accepted:
            self.now.loss = loss
            joined.keep_loss()
            self._losses.append(loss)
            if with_gradient:
                joined.keep_gradient()
        else:
            self.flat.vector.copy_(self._start)
        return rho, accepted

    def _add_momentum(self, reduction: float) -> float:
        """Make ``_step`` the joined correction plus momentum times the last one.

        The joined gradient says what that adds to the promised reduction, which is returned. The
        momentum is cut to keep |s| <= Delta, and left out where it would undo the correction.
        """
        joined, step, norm = self._joined, self._step, self.options.norm
        beta, gain = 0.0, 0.0
        if self.now.moving and self.options.momentum > 0.0 and joined.joins_gradients:
            room = self.now.radius - norm_of(joined.correction, norm)
            longest = max(room, 0.0) / max(norm_of(step, norm), 1e-300)
            beta = min(self.options.momentum, longest)
            gain = -beta * float(torch.dot(joined.g, step))
            if not gain > -0.5 * reduction:
                beta, gain = 0.0, 0.0
        step.mul_(beta).add_(joined.correction)
        return reduction + gain

    def _adapt(self, rho: float, at_ball: bool, length: float) -> None:
        """Move Delta, or the relaxation where that and not Delta limits the correction."""
        now, rule = self.now, self.relaxation_rule
        limits = at_ball and rho >= rule.shrink_below
        fails = now.relaxation == 1.0 and not rho >= rule.shrink_below
        if self.options.join != "adaptive" or limits or fails:
            now.radius = self.rule.update(now.radius, rho, hits_boundary=at_ball, length=length)
        else:
            now.relaxation = rule.update(now.relaxation, rho)

    def _take_global_step(self, with_gradient: bool) -> tuple[float, bool]:
        """Step 6, in a radius of its own; the gradient is evaluated where it can be used again."""
        self._start.copy_(self.flat.vector)
        p, radius = self._subdomains[0].solver.correction, self.now.global_radius  # a free vector
        step = self._global.step(self._joined.g, torch.zeros_like(p), radius, radius, p)
        if not step.predicted > 0.0:
            return math.nan, False
        self.flat.vector.add_(p)
        rho, accepted = self._trial(p if self._learns() else None, step.predicted, with_gradient)
        self.now.global_radius = self.rule.update(
            radius, rho, hits_boundary=step.hits_boundary, length=step.length
        )
        return rho, accepted

    def _learns(self) -> bool:
        """Whether the global model wants the gradient differences of trial steps."""
        return self.options.global_step and self._global.learns

    # ---- state -----------------------------------------------------------------------------

    def _vectors(self) -> dict[str, Tensor]:
        return {"gradient": self._joined.g, "step": self._step}

    def state_dict(self) -> dict[str, Any]:
        """As the frame's; the global model as well."""
        return {**super().state_dict(), "global_model": self._global.state_dict()}

    def _take_over(self, state: dict[str, Any], *, resized: bool) -> None:
        super()._take_over(state, resized=resized)
        self._global.load_state_dict(state["global_model"])
        self._joined.joins_gradients = self._needs_gradients()
        if resized:
            self.now.known = False
