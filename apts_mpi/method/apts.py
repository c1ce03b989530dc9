"""APTS: a trust-region method preconditioned nonlinearly by the subdomains' own steps.

N subdomains, one or several a rank; subdomain d's batch has b_d samples, weight w_d = b_d / sum b.
With f = sum w_d f_d, one outer iteration from theta_k, radius Delta, is (arXiv 2502.05133; the
numbers are those of the comments below):

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
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.replicas import take_rank_zeros
from apts_mpi.method import interface
from apts_mpi.method.first_radius import search_radius
from apts_mpi.method.flat import Closures, FlatParameters
from apts_mpi.method.iteration import Iteration, require_options
from apts_mpi.method.joined_loss import JoinedLoss, Part
from apts_mpi.method.options import DETERMINISTIC, JOINS, NORMS
from apts_mpi.method.signs import FailureSigns
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
from apts_mpi.trust_region.objective import Objective
from apts_mpi.trust_region.radius import (
    FIRST_ORDER_RULE,
    RadiusRule,
    RelaxationRule,
    reduction_ratio,
)

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI

# Attributes that a restart needs, each a plain number.
_NUMBERS = (
    *("iterations", "radius", "global_radius", "relaxation"),
    *("_loss", "_known", "_moving"),
)

Batch = tuple[Objective, int]


class _Subdomain:
    """What one subdomain has of its own: its loss, its local solver, its local radius."""

    def __init__(self, part: Part, solver: LocalSolver) -> None:
        self.part, self.solver = part, solver
        self.radius = math.nan

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "radius": self.radius,
            "loss": self.part.loss,
            "weight": self.part.weight,
            "shift": self.part.shift.clone(),
            "model": self.solver.model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.radius = float(state["radius"])
        self.part.loss, self.part.weight = float(state["loss"]), float(state["weight"])
        self.part.shift.copy_(state["shift"])
        self.solver.model.load_state_dict(state["model"])


class APTS(interface.NoTorchOptimizer):
    """The optimizer, one outer iteration a ``step``, in the manner of ``torch.optim``.

    Every rank builds it over its own copy of the same network and calls ``step`` with a closure
    over its own samples; the parameters stay equal on all ranks.

    Args:
        parameters: of the network, float32, on one device; rank 0's values are broadcast.
            Or already flat, as ``FlatNetwork`` makes them.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them. All
            need the same number of threads and the same kind of device: what they compute
            redundantly must round alike.
        local_solver: "sr1" (L-SR1 model, exact subproblem) or "first-order".
        local_steps: most local trust-region steps of a subdomain an iteration.
        subdomains: of this rank, each with a batch of its own; as many on every rank.
        consistency: whether the local objective has the term that makes it first-order consistent.
        norm: "2" or "inf" (first order only) of the trust regions.
        join: "sum", "average" or "adaptive" relaxation of the corrections.
        global_step: whether step 6 is taken.
        radius: initial Delta in the units of the norm; default searched at the first step.
        window: how many of the last losses the reference of rho is the largest of; 1 is monotone.
        momentum: share of the last accepted correction added to the next one, 0 to below 1; needs
            g, so that without consistency and global step there is none.
        memory: pairs an L-SR1 model keeps, 1 to 10.
        rule: when steps are taken and how radii follow.
        compress: how corrections are sent: "none", or "bf16", "fp16" (compression.py), whose
            residuals may take |s| beyond Delta by what rounding lost before.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        flat: the parameters and gradients as vectors.
        radius: Delta, of the correction. global_radius: of the global step, whose one step has
            another reach than N times five.
    """

    OWN: ClassVar[tuple[str, ...]] = ("options", "subdomains", "gradient", "lost")
    FORGETS: ClassVar[str] = "what is known at the iterate, the local radii and models"

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | FlatParameters,
        *,
        comm: Comm | MPI.Comm | None = None,
        local_solver: str = "sr1",
        local_steps: int = 5,
        subdomains: int = 1,
        consistency: bool = True,
        norm: str = "2",
        join: str = "adaptive",
        global_step: bool = True,
        radius: float | None = None,
        window: int = 1,
        momentum: float = 0.5,
        memory: int = 5,
        rule: RadiusRule | None = None,
        compress: str = "none",
    ) -> None:
        if local_solver not in DETERMINISTIC:
            raise ValueError(f"local_solver {local_solver!r} is none of {DETERMINISTIC}")
        if norm not in NORMS or (norm == "inf" and local_solver == "sr1"):
            raise ValueError(f"norm {norm!r}: '2', or 'inf' with the first-order solver")
        if join not in JOINS:
            raise ValueError(f"join {join!r} is none of {JOINS}")
        local_steps = interface.whole("local_steps", local_steps)
        window = interface.whole("window", window)
        subdomains = interface.whole("subdomains", subdomains)
        for name, value in (("consistency", consistency), ("global_step", global_step)):
            interface.switch(name, value)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum {momentum} is outside [0, 1)")
        if not isinstance(parameters, FlatParameters):
            parameters = FlatParameters(interface.parameters(parameters))
        self.comm = interface.communicator(comm)
        self.flat = flat = parameters
        self.local_solver, self.norm, self.join = local_solver, norm, join
        self.consistency = consistency and self.comm.size * subdomains > 1
        self.global_step, self.momentum = global_step, momentum
        self.rule = rule or (FIRST_ORDER_RULE if local_solver == "first-order" else RadiusRule())
        self.relaxation_rule = RelaxationRule()
        first = interface.first_radius(radius)
        if radius is not None and not self.rule.minimum <= radius <= self.rule.maximum:
            raise ValueError(
                f"radius {radius} is outside {self.rule.minimum} to {self.rule.maximum}"
            )
        self.radius = self.global_radius = first
        self.relaxation = 1.0
        self.iterations = 0
        # The first radius is searched along g, also where nothing later needs it.
        needs_g = self.consistency or global_step or radius is None
        self._joined = JoinedLoss(
            flat,
            self.comm,
            joins_gradients=needs_g,
            subdomains=subdomains,
            compress=compress,
        )
        self._losses: deque[float] = deque(maxlen=window)
        self._subdomains = [
            _Subdomain(
                part,
                LocalSolver(
                    flat.vector,
                    flat.gradient,
                    self._model(memory),
                    self.rule,
                    norm=norm,
                    steps=local_steps,
                ),
            )
            for part in self._joined.parts
        ]
        self._global: Model = self._model(memory)
        self._start = torch.zeros_like(flat.vector)  # theta_k
        self._step = torch.zeros_like(flat.vector)  # s, of the last iteration until the next
        self._moving = False  # whether that was accepted
        self._loss = math.nan  # f at the iterate
        self._known = False  # whether that and the gradients hold for the next iteration too
        self._signs = FailureSigns()
        self._closures = Closures(flat, tells=self.comm.rank == 0)
        self.comm.require_same("a network", flat.describe())
        self.comm.broadcast_tensor(flat.vector)
        take_rank_zeros(flat.frozen, self.comm)

    def _model(self, memory: int) -> Model:
        if self.local_solver == "first-order":
            return FirstOrder(self.norm)
        n, device = self.flat.n, self.flat.vector.device
        return SecondOrder(LSR1(n, memory=memory, device=device))

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
        interface.require_functions(closures, len(self._subdomains), closures=True)
        each = samples if isinstance(samples, Sequence) else [samples]
        counts = [interface.count(samples) for samples in each]
        if len(counts) != len(closures):
            raise ValueError(f"samples {samples} of {len(closures)} closures")
        self.flat.check_views()
        with self._closures.called():
            objectives = [self._closures.objective(each, watch=same_batch) for each in closures]
            return self.iterate(*zip(objectives, counts, strict=True), same_batch=same_batch)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to zero; a step does it by itself."""
        self.flat.attach_gradients()
        self.flat.gradient.zero_()

    # ---- the method ------------------------------------------------------------------------

    def iterate(self, *batches: Batch, same_batch: bool) -> Iteration:
        """One outer iteration over each subdomain's f_d, evaluated with or without gradient."""
        joined, theta, start = self._joined, self.flat.vector, self._start
        joined.begin(batches)

        # 1. loss and gradient at theta_k; the gradients join where a term needs them
        if not self._known:
            self._loss = joined.evaluate(with_gradient=True)
            if not (math.isfinite(self._loss) and joined.gradient_is_finite()):
                what = f"loss at the start of iteration {self.iterations + 1} is {self._loss}"
                if math.isfinite(self._loss):
                    what = f"gradient at the start of iteration {self.iterations + 1} is not finite"
                raise FloatingPointError(
                    f"the {what}: look for bad samples in the batch or a network that overflows"
                )
            joined.keep_loss()
            joined.keep_gradient()
            self._losses.append(self._loss)
        same_batch = same_batch and not joined.draws
        start.copy_(theta)
        if math.isnan(self.radius):
            found = search_radius(joined, start, self._loss, self.norm)
            self.radius = min(max(found.length, self.rule.minimum), self.rule.maximum)
            if found.why and self.comm.rank == 0:
                found.warn(self.radius)
            joined.joins_gradients = self.consistency or self.global_step
            self.global_radius = self.radius

        # 2. and 3. local steps on the consistent objective, gradient at theta_k known
        rows = list[tuple[float, ...]]()
        for k, own in enumerate(self._subdomains):
            with self.comm.clock.phase("algebra", "local steps"):
                local = self._local_steps(own)
            factor = 1.0 if self.join == "sum" else self.relaxation * own.part.weight
            joined.add(k, own.solver.correction, factor)
            rows.append(
                (
                    factor * local.reduction,
                    own.part.weight * local.hits_boundary,
                    float(local.accepted),
                    float(local.tried),
                )
            )

        # 4. corrections and local reductions in one message
        reduction, at_ball, accepted_steps, tried_steps = joined.join(*rows)

        # 5. the joined correction on trial
        rho, accepted = math.nan, False
        if reduction > 0.0:
            reduction = self._add_momentum(reduction)
            torch.add(start, self._step, out=theta)
            step = self._step if self._learns() else None
            rho, accepted = self._trial(step, reduction, same_batch or self.global_step)
            self._adapt(rho, at_ball >= 0.5, norm_of(self._step, self.norm))
        else:
            theta.copy_(start)
        self._moving = accepted
        if accepted:
            joined.messages.keep()
        else:
            joined.messages.drop()

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
            relaxation=self.relaxation,
            local_reduction=reduction,
            local_accepted=round(accepted_steps),
            local_tried=round(tried_steps),
            gradient_evaluations=joined.work,
        )
        if self.comm.rank == 0:  # all ranks see the same
            self._signs.watch(result, at_floor=self.rule.at_floor(self.radius))
        return result

    def _ball(self, own: _Subdomain) -> float:
        """Radius of a subdomain's own ball, such that the joined correction keeps |s| <= Delta."""
        if self.join == "sum":
            return self.radius * own.part.weight
        return self.radius / self.relaxation

    def _local_steps(self, own: _Subdomain) -> LocalResult:
        part, solver, ball = own.part, own.solver, self._ball(own)
        if part.samples == 0:  # a subdomain without samples in this batch moves nothing
            solver.correction.zero_()
            return LocalResult(0.0, own.radius, 0, 0, False)
        if math.isnan(own.radius):
            own.radius = ball / solver.steps
        gradient = self._joined.g
        if not self.consistency:
            gradient = torch.sub(self._joined.g, part.shift, out=self.flat.gradient)
        result = solver.run(
            part.own,
            start=self._start,
            loss=part.loss,
            gradient=gradient,
            shift=part.shift if self.consistency else None,
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
        loss = self._joined.evaluate(with_gradient=with_gradient)
        rho = reduction_ratio(self._loss, loss, predicted, noise=LOSS_NOISE)
        # The window relaxes what is taken, not what is told of the model's quality.
        windowed = reduction_ratio(max(self._losses), loss, predicted, noise=LOSS_NOISE)
        if step is not None and with_gradient:
            self._global.learn(step, self._joined.vector - self._joined.g)
        accepted = self.rule.accepts(windowed)
        if accepted and with_gradient and not self._joined.gradient_is_finite():
            rho, accepted = math.nan, False
        if accepted:
            self._loss = loss
            self._joined.keep_loss()
            self._losses.append(loss)
            if with_gradient:
                self._joined.keep_gradient()
        else:
            self.flat.vector.copy_(self._start)
        return rho, accepted

    def _add_momentum(self, reduction: float) -> float:
        """Make ``_step`` the joined correction plus momentum times the last one.

        The joined gradient says what that adds to the promised reduction, which is returned. The
        momentum is cut to keep |s| <= Delta, and left out where it would undo the correction.
        """
        joined, step = self._joined, self._step
        beta, gain = 0.0, 0.0
        if self._moving and self.momentum > 0.0 and joined.joins_gradients:
            room = self.radius - norm_of(joined.vector, self.norm)
            beta = min(self.momentum, max(room, 0.0) / max(norm_of(step, self.norm), 1e-300))
            gain = -beta * float(torch.dot(joined.g, step))
            if not gain > -0.5 * reduction:
                beta, gain = 0.0, 0.0
        step.mul_(beta).add_(joined.vector)
        return reduction + gain

    def _adapt(self, rho: float, at_ball: bool, length: float) -> None:
        """Move Delta, or the relaxation where that and not Delta limits the correction."""
        rule = self.relaxation_rule
        limits = at_ball and rho >= rule.shrink_below
        fails = self.relaxation == 1.0 and not rho >= rule.shrink_below
        if self.join != "adaptive" or limits or fails:
            self.radius = self.rule.update(self.radius, rho, hits_boundary=at_ball, length=length)
        else:
            self.relaxation = rule.update(self.relaxation, rho)

    def _take_global_step(self, same_batch: bool) -> tuple[float, bool]:
        """Step 6, in a radius of its own; its gradient is evaluated where it can be used again."""
        self._start.copy_(self.flat.vector)
        p, radius = self._subdomains[0].solver.correction, self.global_radius  # a free vector
        step = self._global.step(self._joined.g, torch.zeros_like(p), radius, radius, p)
        if not step.predicted > 0.0:
            return math.nan, False
        self.flat.vector.add_(p)
        rho, accepted = self._trial(p if self._learns() else None, step.predicted, same_batch)
        self.global_radius = self.rule.update(
            radius, rho, hits_boundary=step.hits_boundary, length=step.length
        )
        return rho, accepted

    def _learns(self) -> bool:
        """Whether the global model wants the gradient differences of trial steps."""
        return self.global_step and self._global.learns

    # ---- state -----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """What a state belongs to."""
        return {
            "rank": self.comm.rank,
            "ranks": self.comm.size,
            "subdomains": len(self._subdomains),
            "parameters": self.flat.n,
            "local_solver": self.local_solver,
            "norm": self.norm,
            "join": self.join,
            "consistency": self.consistency,
            "global_step": self.global_step,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a restart needs; tensors and plain numbers.

        Every rank saves its state and loads it again; but for the entries that ``OWN`` names it is
        the same on all of them.
        """
        return {
            "options": self._options(),
            **{name.strip("_"): getattr(self, name) for name in _NUMBERS},
            "losses": list(self._losses),
            "subdomains": {str(k): own.state_dict() for k, own in enumerate(self._subdomains)},
            "global_model": self._global.state_dict(),
            "gradient": self._joined.g.clone(),
            "step": self._step.clone(),
            "lost": self._joined.messages.state_dict(),
            "signs": asdict(self._signs),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore what ``state_dict`` gave on the same rank.

        Args:
            resized: the state is of a run with another number of ranks or subdomains, of any rank:
                what is a subdomain's own is not taken over.

        Raises:
            ValueError: the state is another rank's, or of other options or another network.
        """
        besides = {"rank", "ranks", "subdomains", "consistency"} if resized else set()
        require_options(self._options(), interface.options_in(state), besides=besides)
        with interface.of_a_state():
            for name in _NUMBERS:
                setattr(self, name, type(getattr(self, name))(state[name.strip("_")]))
            self._losses = deque(map(float, state["losses"]), maxlen=self._losses.maxlen)
            self._global.load_state_dict(state["global_model"])
            self._step.copy_(state["step"])
            if resized:
                self._known = False
                for own in self._subdomains:
                    own.radius = math.nan
            else:
                for k, own in enumerate(self._subdomains):
                    own.load_state_dict(state["subdomains"][str(k)])
                self._joined.g.copy_(state["gradient"])
            searched = not math.isnan(self.radius)
            self._joined.joins_gradients = self.consistency or self.global_step or not searched
            self._joined.messages.load_state_dict({} if resized else state.get("lost", {}))
            self._signs = FailureSigns(**state["signs"])
