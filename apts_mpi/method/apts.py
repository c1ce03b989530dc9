"""APTS: a trust-region method preconditioned nonlinearly by the subdomains' own steps.

N subdomains, one or several per rank; subdomain i's batch has b_i samples, weight
w_i = b_i / sum b. With f = sum w_i f_i, one outer iteration from theta_k, radius Delta, is (arXiv
2502.05133; comments refer to the numbers):

1. f_i, g_i on the subdomain's batch; one Allreduce gives f and g.
2. Local objective, first-order consistent: f_i(theta) + <g - g_i, theta - theta_k>.
3. At most five local trust-region steps, all inside a ball around theta_k.
4. The corrections join by one Allreduce, the local reductions in the same message. "sum": ball of
   radius w_i Delta (Delta/N for equal parts), corrections summed; "average": ball of radius Delta,
   corrections averaged by weight; "adaptive": ball of radius Delta/a, a times the average, where
   the relaxation a >= 1 follows rho as Delta does. A share of the last accepted correction is
   added (momentum.py; not in the paper). All keep |s| <= Delta.
5. rho = (f(theta_k) - f(theta_k + s)) / (joined local reductions) accepts s or restores theta_k bit
   for bit, and moves Delta.
6. Global step: one trust-region step on f with its own model and radius, from the gradient at the
   accepted point, judged as s is.

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
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import interface
from apts_mpi.method.first_radius import along_descent
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.frame import Method
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.joined_loss import JoinedLoss
from apts_mpi.method.momentum import add_heavy_ball
from apts_mpi.method.options import APTSOptions
from apts_mpi.method.state import APTSNumbers
from apts_mpi.method.subdomain import BatchSubdomain, model_of
from apts_mpi.trust_region.local import LOSS_NOISE, norm_of
from apts_mpi.trust_region.objective import Batch, Draw
from apts_mpi.trust_region.radius import RadiusRule, RelaxationRule, reduction_ratio

_RELAXATION = RelaxationRule()


class DeterministicMethod(Method, options=APTSOptions, numbers=APTSNumbers):
    """The method on whole batches, one outer iteration per ``iterate``."""

    PER_RANK: ClassVar[tuple[str, ...]] = (*Method.PER_RANK, "gradient")
    LOST_ON_RESIZE: ClassVar[str] = "what is known at the iterate, the local radii and models"

    options: APTSOptions
    now: APTSNumbers
    rule: RadiusRule
    _subdomains: list[BatchSubdomain]

    def __init__(self, flat: FlatParameters, *, comm: Comm, **options: Any) -> None:
        super().__init__(flat, comm, options)
        given, theta = self.options, self.flat.vector
        self.now.global_radius = self.now.radius
        self.consistency = given.consistency and self.several
        self._subdomains = [
            BatchSubdomain(self.flat, self.messages, given, consistency=self.consistency)
            for _ in range(given.subdomains)
        ]
        self._joined = JoinedLoss(
            self.messages, self._subdomains, joins_gradients=self._needs_gradients()
        )
        self._global = model_of(given, theta)
        self._step = torch.zeros_like(theta)  # s, of the last iteration until the next

    def _needs_gradients(self) -> bool:
        """Whether gradients join; the first radius is searched along g in any case."""
        return self.consistency or self.options.global_step or math.isnan(self.now.radius)

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration on the next minibatch of each subdomain."""
        interface.require_one_per_subdomain(draws, self._subdomains)
        return self._iterate([draw() for draw in draws])

    # ---- the method ------------------------------------------------------------------------

    def _iterate(self, batches: Sequence[Batch]) -> Iteration:
        """One outer iteration; where something raises, back to the last accepted point.

        What local steps have learned by then (their radii and models) stays.
        """
        self._start.copy_(self.flat.vector)
        try:
            return self._iteration(batches)
        except BaseException:
            self.flat.vector.copy_(self._start)
            self.now.known = self.now.moving = False
            raise

    def _iteration(self, batches: Sequence[Batch]) -> Iteration:
        now, options, joined = self.now, self.options, self._joined
        self.messages.work = 0.0
        for subdomain, batch in zip(self._subdomains, batches, strict=True):
            subdomain.use(batch)

        # 1. loss and gradient at theta_k; the gradients join where a term needs them
        if not now.known:
            loss = joined.evaluate(with_gradient=True)
            finite = not math.isfinite(loss) or joined.gradient_is_finite()
            self._adopt(self._require_finite(loss, gradient=finite), with_gradient=True)
        again = joined.repeats  # what is known at the new iterate holds for the next batch too
        if math.isnan(now.radius):
            self._search()

        # 2. and 3. local steps on the consistent objective, gradient at theta_k known
        rows = list[tuple[float, ...]]()
        for k, subdomain in enumerate(self._subdomains):
            w, a, sums = subdomain.weight, now.relaxation, options.join == "sum"
            factor, ball = (1.0, w * now.radius) if sums else (a * w, now.radius / a)
            with self.comm.clock.phase("algebra", "local steps"):
                local = subdomain.local_steps(self._start, joined.g, ball)
            self.messages.add(k, subdomain.solver.correction.mul_(factor))
            counts = local.accepted, local.tried
            rows.append((factor * local.reduction, w * local.hits_boundary, *counts))

        # 4. corrections and local reductions in one message
        reduction, at_ball, taken, tried = self.messages.join(*rows)

        # 5. the joined correction on trial
        rho, accepted = math.nan, False
        if reduction > 0.0:
            reduction = add_heavy_ball(
                self._step,
                joined.correction,
                joined.g,
                share=options.momentum if now.moving and joined.joins_gradients else 0.0,
                reduction=reduction,
                radius=now.radius,
                norm=options.norm,
            )
            rho, accepted = self._try(self._step, reduction, again or options.global_step)
            self._adapt(rho, at_ball >= 0.5, norm_of(self._step, options.norm))
        else:
            self.flat.vector.copy_(self._start)
        now.moving = accepted
        (self.messages.keep if accepted else self.messages.drop)()

        # 6. one trust-region step on f itself
        global_rho, global_accepted = math.nan, False
        if options.global_step:
            global_rho, global_accepted = self._try_global_step(again)

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
            steps=(taken, tried),
        )

    def _search(self) -> None:
        """The first radius, of the global step as well."""
        now, norm = self.now, self.options.norm
        found = along_descent(self._joined, self.flat.vector, self._start, loss=now.loss, norm=norm)
        now.radius = min(max(found.length, self.rule.minimum), self.rule.maximum)
        now.global_radius = now.radius
        if found.why and self.comm.rank == 0:
            found.warn(now.radius)
        self._joined.joins_gradients = self._needs_gradients()

    def _try(self, step: Tensor, promised: float, with_gradient: bool) -> tuple[float, bool]:
        """Accept the trial point, a step (n,) from ``_start``, or go back there; rho of formula 5.

        Args:
            promised: reduction. with_gradient: whether g is wanted at the trial point, if accepted.
        """
        joined = self._joined
        torch.add(self._start, step, out=self.flat.vector)
        loss = joined.evaluate(with_gradient=with_gradient)
        rho = reduction_ratio(self.now.loss, loss, promised, noise=LOSS_NOISE)
        # The window relaxes what is accepted, not what is said of the model's quality.
        windowed = reduction_ratio(max(self._losses), loss, promised, noise=LOSS_NOISE)
        if self.options.global_step and self._global.learns and with_gradient:
            self._global.learn(step, joined.gradient - joined.g)
        accepted = self.rule.accepts(windowed)
        if accepted and with_gradient and not joined.gradient_is_finite():
            rho, accepted = math.nan, False
        if accepted:
            self._adopt(loss, with_gradient=with_gradient)
        else:
            self.flat.vector.copy_(self._start)
        return rho, accepted

    def _adopt(self, loss: float, *, with_gradient: bool) -> None:
        """The loss, and the gradient where wanted, evaluated last are those at the iterate."""
        self.now.loss = loss
        self._losses.append(loss)
        self._joined.adopt(with_gradient=with_gradient)

    def _adapt(self, rho: float, at_ball: bool, length: float) -> None:
        """Move Delta, or the relaxation where that and not Delta limits the correction."""
        now, rule = self.now, _RELAXATION
        limits = at_ball and rho >= rule.shrink_below
        fails = now.relaxation == 1.0 and not rho >= rule.shrink_below
        if self.options.join != "adaptive" or limits or fails:
            now.radius = self.rule.update(now.radius, rho, hits_boundary=at_ball, length=length)
        else:
            now.relaxation = rule.update(now.relaxation, rho)

    def _try_global_step(self, with_gradient: bool) -> tuple[float, bool]:
        """Step 6; the gradient is evaluated where it can be used again."""
        self._start.copy_(self.flat.vector)
        p, radius = self._subdomains[0].solver.correction, self.now.global_radius  # a free vector
        step = self._global.step(self._joined.g, torch.zeros_like(p), radius, radius, p)
        if not step.predicted > 0.0:
            return math.nan, False
        rho, accepted = self._try(p, step.predicted, with_gradient)
        self.now.global_radius = self.rule.update(
            radius, rho, hits_boundary=step.hits_boundary, length=step.length
        )
        return rho, accepted

    # ---- state -----------------------------------------------------------------------------

    def _vectors(self) -> dict[str, Tensor]:
        return {"gradient": self._joined.g, "step": self._step}

    def shared_state(self) -> dict[str, Any]:
        """As the frame's; the global model as well."""
        return {**super().shared_state(), "global_model": self._global.state_dict()}

    def _restore(self, state: dict[str, Any], *, resized: bool) -> None:
        super()._restore(state, resized=resized)
        self._global.load_state_dict(state["global_model"])
        self._joined.joins_gradients = self._needs_gradients()
