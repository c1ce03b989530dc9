"""APTS: a trust-region method preconditioned nonlinearly by the subdomains' own steps.

N ranks, one subdomain each; rank d's batch has b_d samples, weight w_d = b_d / sum b. With
f = sum w_d f_d, one outer iteration from theta_k, radius Delta, is (arXiv 2502.05133; the numbers
are those of the comments below):

1. f_d, g_d on the rank's batch; one Allreduce gives f and g.
2. Local objective, first-order consistent: f_d(theta) + <g - g_d, theta - theta_k>.
3. At most five local trust-region steps, all inside the ball around theta_k.
4. The corrections join by one Allreduce, the local reductions in the same message. "sum": local
   radius w_d Delta (Delta/N for equal parts), corrections summed; "average": local radius Delta,
   corrections averaged by weight; "adaptive": local radius Delta/a, a times the average, where
   the relaxation a >= 1 follows rho as Delta does. All keep |s| <= Delta.
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

A message more or less than in the table: an iteration whose correction is zero on all ranks has no
trial; one whose global step is zero has no second one. The first iteration also broadcasts theta
and, where no radius is given, searches one with scalar messages only.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi.comm import Comm
from apts_mpi.flat import FlatParameters
from apts_mpi.message import FusedMessage
from apts_mpi.trust_region.local import (
    LOSS_NOISE,
    FirstOrder,
    LocalResult,
    LocalSolver,
    Model,
    Objective,
    SecondOrder,
)
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.radius import RadiusRule, reduction_ratio

log = logging.getLogger("apts_mpi")

LOCAL_SOLVERS = ("sr1", "first-order")
# Relaxation of the averaged correction, 1 (average) upwards: where every rank's small steps point
# the same way, their average is too timid and rho stays near one. Growth is slower than retreat, as
# a rejected correction costs the whole iteration.
RELAX_SHRINK_BELOW, RELAX_GROW_ABOVE = 0.25, 0.6
RELAX_SHRINK, RELAX_GROW, RELAX_MAX = 0.5, 1.5, 8.0
FORWARD_WORK = 1.0 / 3.0  # a forward evaluation against one with a gradient
_SCALARS = 6  # most scalars a message carries


@dataclass(frozen=True)
class Iteration:
    """What one outer iteration did; the same on every rank.

    Attributes:
        loss: f on the iteration's batch at the new iterate.
        rho, accepted: of the joined correction. rho is NaN where nothing was tried.
        global_rho, global_accepted: of the global step.
        radius: Delta after the iteration.
        local_reduction: what the joined correction promised.
        local_accepted, local_tried: local steps, summed over ranks.
        gradient_evaluations: per-sample ones, summed over ranks; a forward one counts a third.
    """

    loss: float
    rho: float
    accepted: bool
    global_rho: float
    global_accepted: bool
    radius: float
    local_reduction: float
    local_accepted: int
    local_tried: int
    gradient_evaluations: float


class APTS:
    """The optimizer, one outer iteration a ``step``, in the manner of ``torch.optim``.

    Every rank builds it over its own copy of the same network and calls ``step`` with a closure
    over its own samples; the parameters stay equal on all ranks.

    Args:
        parameters: of the network, float32, on one device; rank 0's values are broadcast.
            Or already flat, as ``FlatNetwork`` makes them.
        comm: the ranks that work together; default all of them.
        local_solver: "sr1" (L-SR1 model, exact subproblem) or "first-order".
        local_steps: most local trust-region steps an iteration.
        consistency: whether the local objective has the term that makes it first-order consistent.
        norm: "2" or "inf" (first order only) of the trust regions.
        join: "sum", "average" or "adaptive" relaxation of the corrections.
        global_step: whether step 6 is taken.
        radius: initial Delta in the units of the norm; default searched at the first step.
        window: how many of the last losses the reference of rho is the largest of; 1 is monotone.
        memory: pairs an L-SR1 model keeps, 1 to 10.
        rule: when steps are taken and how radii follow.

    Attributes:
        flat: the parameters and gradients as vectors.
        radius: Delta, of the correction. global_radius: of the global step, whose one step has
            another reach than N times five. local_radius: of this rank's first local step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | FlatParameters,
        *,
        comm: Comm | None = None,
        local_solver: str = "sr1",
        local_steps: int = 5,
        consistency: bool = True,
        norm: str = "2",
        join: str = "adaptive",
        global_step: bool = True,
        radius: float | None = None,
        window: int = 1,
        memory: int = 5,
        rule: RadiusRule | None = None,
    ) -> None:
        if local_solver not in LOCAL_SOLVERS:
            raise ValueError(f"local_solver {local_solver!r} is none of {LOCAL_SOLVERS}")
        if norm not in ("2", "inf") or (norm == "inf" and local_solver == "sr1"):
            raise ValueError(f"norm {norm!r}: '2', or 'inf' with the first-order solver")
        if join not in ("sum", "average", "adaptive"):
            raise ValueError(f"join {join!r} is none of 'sum', 'average', 'adaptive'")
        if local_steps < 1 or window < 1 or (radius is not None and not 0 < radius < math.inf):
            raise ValueError("local_steps and window must be at least 1, radius positive")
        self.comm = comm or Comm()
        flat = parameters if isinstance(parameters, FlatParameters) else FlatParameters(parameters)
        self.flat = flat
        self.local_solver, self.norm, self.join = local_solver, norm, join
        self.consistency = consistency and self.comm.size > 1
        self.global_step = global_step
        self.rule = rule or RadiusRule()
        self.radius = radius if radius is not None else math.nan
        self.local_radius = self.global_radius = math.nan
        self.relaxation = 1.0
        self.iterations = 0
        self._losses: deque[float] = deque(maxlen=window)
        self._local = LocalSolver(
            flat, self._model(memory), self.rule, norm=norm, steps=local_steps
        )
        self._global: Model = self._model(memory)
        self._message = FusedMessage(flat.n, _SCALARS, flat.vector.device)
        self._start = torch.zeros_like(flat.vector)  # theta_k
        self._g = torch.zeros_like(flat.vector)  # global gradient at the iterate
        self._shift = torch.zeros_like(flat.vector)  # consistency term g - g_d there
        self._zero = torch.zeros(1, device=flat.vector.device).expand(flat.n)
        self._loss, self._own_loss = math.nan, math.nan  # f and f_d at the iterate
        self._known = False  # whether the five above belong to the next iteration's batch too
        self._samples, self._weight = 0.0, 0.0
        self._work = 0.0  # per-sample evaluations of this rank not yet told to the others
        self._told = 0.0  # those of all ranks in this iteration
        self._signs = FailureSigns()
        self.comm.broadcast_tensor(flat.vector)

    def _model(self, memory: int) -> Model:
        if self.local_solver == "first-order":
            return FirstOrder(self.norm)
        n, device = self.flat.n, self.flat.vector.device
        return SecondOrder(LSR1(n, memory=memory, device=device))

    # ---- the public call -------------------------------------------------------------------

    def step(
        self, closure: Callable[[], Tensor], *, samples: int = 1, same_batch: bool = False
    ) -> Iteration:
        """One outer iteration; every rank calls it.

        Args:
            closure: returns the mean loss over this rank's batch, a scalar tensor, always over the
                same samples during the call. It does not call ``backward``.
            samples: how many samples that mean is over; weighs this rank among the others.
            same_batch: the next call's batch is this call's (training on the whole shard): what is
                known at the new iterate is then not evaluated again.

        Raises:
            FloatingPointError: on every rank, if the loss at the iterate is not finite.
        """

        def objective(with_gradient: bool) -> float:
            if not with_gradient:
                with torch.no_grad():
                    return float(closure())
            self.flat.attach_gradients()
            self.flat.gradient.zero_()
            with torch.enable_grad():
                loss = closure()
            if not loss.requires_grad:
                raise RuntimeError("the closure's loss does not depend on the parameters")
            try:
                loss.backward()
            except RuntimeError as error:
                raise RuntimeError(
                    "the closure must return the loss and leave backward() to the optimizer"
                ) from error
            return float(loss.detach())

        self.flat.check_views()
        return self.iterate(objective, samples=samples, same_batch=same_batch)

    def zero_grad(self) -> None:
        """Set all gradients to zero; a step does it by itself."""
        self.flat.attach_gradients()
        self.flat.gradient.zero_()

    # ---- the method ------------------------------------------------------------------------

    def iterate(self, objective: Objective, *, samples: int, same_batch: bool) -> Iteration:
        """One outer iteration over an objective that evaluates f_d, with or without gradient."""
        self._objective, self._samples = objective, float(samples)
        self._told = 0.0
        theta, start = self.flat.vector, self._start

        # 1. loss and gradient at theta_k; the gradients join where a term needs them
        if not self._known:
            self._evaluate(with_gradient=True)
            self._keep_gradient()
            if not math.isfinite(self._loss):
                raise FloatingPointError(
                    f"the loss at the start of iteration {self.iterations} is {self._loss}: "
                    "look for bad samples in the batch or a network that overflows"
                )
            self._losses.append(self._loss)
        start.copy_(theta)
        if math.isnan(self.radius):
            self.radius = self._search_radius()
        if math.isnan(self.local_radius):
            self.local_radius = self._ball() / self._local.steps
            self.global_radius = self.radius

        # 2. and 3. local steps on the consistent objective, gradient at theta_k known
        local = self._local_steps()

        # 4. corrections and local reductions in one message
        weight = self._joining_weight()
        torch.mul(self._local.correction, weight, out=self._message.vector)
        reduction, at_ball, accepted_steps, tried_steps = self._sum_message(
            weight * local.reduction,
            self._weight * local.hits_boundary,
            float(local.accepted),
            float(local.tried),
        )

        # 5. the joined correction on trial
        rho, accepted = math.nan, False
        if reduction > 0.0:
            torch.add(start, self._message.vector, out=theta)
            step = self._message.vector.clone() if self._learns() else None
            rho, accepted = self._trial(step, reduction, same_batch or self.global_step)
            self._adapt(rho, at_ball >= 0.5)
        else:
            theta.copy_(start)

        # 6. one trust-region step on f itself
        global_rho, global_accepted = math.nan, False
        if self.global_step:
            global_rho, global_accepted = self._take_global_step(same_batch)

        self._known = same_batch
        self.iterations += 1
        result = Iteration(
            loss=self._loss,
            rho=rho,
            accepted=accepted,
            global_rho=global_rho,
            global_accepted=global_accepted,
            radius=self.radius,
            local_reduction=reduction,
            local_accepted=round(accepted_steps),
            local_tried=round(tried_steps),
            gradient_evaluations=self._told,
        )
        self._signs.watch(result, self.rule)
        return result

    def _learns(self) -> bool:
        return self.global_step and self._global.learns

    def _ball(self) -> float:
        """Radius of this rank's own ball, such that the joined correction keeps |s| <= Delta."""
        return self.radius * self._weight if self.join == "sum" else self.radius / self.relaxation

    def _joining_weight(self) -> float:
        """Factor of this rank's correction in the joined one."""
        return 1.0 if self.join == "sum" else self.relaxation * self._weight

    def _adapt(self, rho: float, at_ball: bool) -> None:
        """Move Delta, or the relaxation where that and not Delta limits the correction."""
        limited = at_ball and rho >= RELAX_SHRINK_BELOW
        failed = self.relaxation == 1.0 and not rho >= RELAX_SHRINK_BELOW
        if self.join != "adaptive" or limited or failed:
            self.radius = self.rule.update(self.radius, rho, hits_boundary=at_ball)
        elif not rho >= RELAX_SHRINK_BELOW:
            self.relaxation = max(self.relaxation * RELAX_SHRINK, 1.0)
        elif rho > RELAX_GROW_ABOVE:
            self.relaxation = min(self.relaxation * RELAX_GROW, RELAX_MAX)

    def _local_steps(self) -> LocalResult:
        if self._samples == 0:  # a rank without samples in this batch moves nothing
            self._local.correction.zero_()
            return LocalResult(0.0, self.local_radius, 0, 0, 0, 0, False)
        gradient = self._g
        if not self.consistency:
            gradient = torch.sub(self._g, self._shift, out=self.flat.gradient)
        result = self._local.run(
            self._count(self._objective),
            start=self._start,
            loss=self._own_loss,
            gradient=gradient,
            shift=self._shift if self.consistency else None,
            radius=min(self.local_radius, self._ball()),
            ball=self._ball(),
        )
        self.local_radius = result.radius
        return result

    def _trial(
        self, step: Tensor | None, predicted: float, with_gradient: bool
    ) -> tuple[float, bool]:
        """Judge f at the present parameters; go back to ``_start`` where they are no better.

        Args:
            step: from ``_start`` to here where the global model is to learn from it.
            predicted: promised reduction. with_gradient: whether g is wanted here, if taken.
        """
        before = self._loss, self._own_loss
        self._evaluate(with_gradient=with_gradient)
        rho = reduction_ratio(max(self._losses), self._loss, predicted, noise=LOSS_NOISE)
        if step is not None and with_gradient:
            self._global.learn(step, self._message.vector - self._g)
        accepted = self.rule.accepts(rho)
        if accepted and with_gradient and not self._gradient_is_finite():
            rho, accepted = math.nan, False
        if accepted:
            self._losses.append(self._loss)
            if with_gradient:
                self._keep_gradient()
        else:
            self.flat.vector.copy_(self._start)
            self._loss, self._own_loss = before
        return rho, accepted

    def _take_global_step(self, same_batch: bool) -> tuple[float, bool]:
        theta, start = self.flat.vector, self._start
        start.copy_(theta)
        p = self._local.correction  # free again
        zero = self._zero
        step = self._global.step(self._g, zero, self.global_radius, self.global_radius, p)
        if not step.predicted > 0.0:
            return math.nan, False
        theta.add_(p)
        rho, accepted = self._trial(p if self._learns() else None, step.predicted, same_batch)
        self.global_radius = self.rule.update(
            self.global_radius, rho, hits_boundary=step.hits_boundary
        )
        return rho, accepted

    # ---- evaluations and messages ----------------------------------------------------------

    def _count(self, objective: Objective) -> Objective:
        def counted(with_gradient: bool) -> float:
            self._work += self._samples * (1.0 if with_gradient else FORWARD_WORK)
            return objective(with_gradient)

        return counted

    def _evaluate(self, *, with_gradient: bool) -> None:
        """f_d and f here; g_d too where wanted, and where g is needed that in the message."""
        own = 0.0
        if self._samples > 0:
            own = self._count(self._objective)(with_gradient)
        elif with_gradient:
            self.flat.gradient.zero_()
        scalars = (self._samples * own, self._samples)
        if with_gradient and self._joins_gradients():
            torch.mul(self.flat.gradient, self._samples, out=self._message.vector)
            total, samples = self._sum_message(*scalars)
            self._message.vector.div_(samples)
        else:
            total, samples = self._sum_scalars(*scalars)
        self._loss, self._own_loss = total / samples, own
        self._weight = self._samples / samples

    def _joins_gradients(self) -> bool:
        """Whether the method needs g at all, and not each rank's own gradient alone."""
        return self.consistency or self.global_step or math.isnan(self.radius)

    def _keep_gradient(self) -> None:
        """The gradient evaluated last belongs to the iterate."""
        if self._joins_gradients():
            self._g.copy_(self._message.vector)
            torch.sub(self._g, self.flat.gradient, out=self._shift)
        else:
            self._g.copy_(self.flat.gradient)
            self._shift.zero_()

    def _gradient_is_finite(self) -> bool:
        """The same on every rank; a rank's own gradient may not decide for all."""
        return not self._joins_gradients() or bool(self._message.vector.isfinite().all())

    def _sum_message(self, *scalars: float) -> list[float]:
        *sums, work = self.comm.sum_message(self._message, (*scalars, self._work))
        self._work = 0.0
        self._told += work
        return sums

    def _sum_scalars(self, *scalars: float) -> list[float]:
        *sums, work = self.comm.sum_scalars((*scalars, self._work))
        self._work = 0.0
        self._told += work
        return sums

    def _search_radius(self) -> float:
        """The first radius: doubled along steepest descent while the loss keeps falling.

        Costs forward evaluations and scalar messages only, and leaves theta_k in place.
        """
        theta, start = self.flat.vector, self._start
        per_entry = 1e-4 if self.norm == "inf" else 1e-4 * math.sqrt(self.flat.n)
        radius, best = per_entry, self._loss
        model, p = FirstOrder(self.norm), self._local.correction
        step = model.step(self._g, self._zero, radius, radius, p)
        loss, own, weight = self._loss, self._own_loss, self._weight
        if step.predicted > 0.0:
            for _ in range(20):
                torch.add(start, p, out=theta)
                self._evaluate(with_gradient=False)
                if not self._loss < best:
                    break
                best, radius = self._loss, radius * 2.0
                p.mul_(2.0)
        theta.copy_(start)
        self._loss, self._own_loss, self._weight = loss, own, weight
        return max(radius / 2.0, per_entry / 2.0)

    # ---- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a restart needs; tensors and plain numbers."""
        return {
            "iterations": self.iterations,
            "radius": self.radius,
            "local_radius": self.local_radius,
            "global_radius": self.global_radius,
            "relaxation": self.relaxation,
            "losses": list(self._losses),
            "local_model": self._local.model.state_dict(),
            "global_model": self._global.state_dict(),
            "known": self._known,
            "loss": self._loss,
            "own_loss": self._own_loss,
            "weight": self._weight,
            "gradient": self._g.clone(),
            "shift": self._shift.clone(),
            "signs": asdict(self._signs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, for the same network, options and rank count."""
        if state["gradient"].shape != self._g.shape:
            raise ValueError(
                f"state is for {len(state['gradient'])} parameters, this network has {self.flat.n}"
            )
        self.iterations = int(state["iterations"])
        self.radius = float(state["radius"])
        self.local_radius = float(state["local_radius"])
        self.global_radius = float(state["global_radius"])
        self.relaxation = float(state["relaxation"])
        self._losses = deque(map(float, state["losses"]), maxlen=self._losses.maxlen)
        self._local.model.load_state_dict(state["local_model"])
        self._global.load_state_dict(state["global_model"])
        self._known = bool(state["known"])
        self._loss, self._own_loss = float(state["loss"]), float(state["own_loss"])
        self._weight = float(state["weight"])
        self._g.copy_(state["gradient"])
        self._shift.copy_(state["shift"])
        self._signs = FailureSigns(**state["signs"])


@dataclass
class FailureSigns:
    """Tells, once each, the signs of a run that goes nowhere."""

    rejected_in_row: int = 0
    untrue_in_row: int = 0
    told_floor: bool = False
    told_rejected: bool = False
    told_untrue: bool = False

    def watch(self, it: Iteration, rule: RadiusRule) -> None:
        """Look at one iteration; every rank logs, the log decides who is heard."""
        moved = it.accepted or it.global_accepted
        self.rejected_in_row = 0 if moved else self.rejected_in_row + 1
        untrue = it.local_reduction > 0.0 and not it.rho > 0.1
        self.untrue_in_row = self.untrue_in_row + 1 if untrue else 0
        if rule.at_floor(it.radius) and not self.told_floor:
            self.told_floor = True
            log.warning(
                "the radius is at its floor %.1e: no step lowers the loss any more; training has "
                "converged, or the batches are too small for their loss to be trusted (raise "
                "--batch)",
                rule.minimum,
            )
        if self.rejected_in_row >= 10 and not self.told_rejected:
            self.told_rejected = True
            log.warning(
                "10 iterations in a row were rejected (radius %.1e): the loss is at a minimum or "
                "not smooth at this scale; a --window above 1 lets it rise for a while",
                it.radius,
            )
        if self.untrue_in_row >= 10 and not self.told_untrue:
            self.told_untrue = True
            log.warning(
                "10 times in a row the ranks' local reductions did not come true on the joined "
                "data: the subdomains' losses disagree (label-skewed shards?) or "
                "their batches are too small; keep --consistency on, raise --batch"
            )
