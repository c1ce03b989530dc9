"""APTS under sampling noise: the stochastic family, which training uses by default.

N subdomains, one or several a rank. With Delta the radius of a local step in the scaled metric, one
outer iteration from theta_k is (docs/method.md has the reasons; the numbers are those of the
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
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.replicas import take_rank_zeros
from apts_mpi.method import interface
from apts_mpi.method.first_radius import search
from apts_mpi.method.flat import Closures, FlatParameters
from apts_mpi.method.iteration import Iteration, require_options
from apts_mpi.method.messages import CountedMessages
from apts_mpi.method.signs import FailureSigns
from apts_mpi.trust_region.objective import Draw, Objective
from apts_mpi.trust_region.radius import NoisyRule, SmoothedRatio
from apts_mpi.trust_region.scaled import ScaledResult, ScaledSolver

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI

log = logging.getLogger("apts_mpi")

_FIRST = 1e-5  # smallest displacement the radius search tries
_BLIND = 1e-3  # first radius where the loss cannot tell, as Adam's usual learning rate
_BRACKET = 2.0  # the search doubles: where the loss stops falling lies up to so many reaches away
_STEPS_IN_REACH = 5.0  # so many steps of the first radius go as far as one step of the search
_AGREEMENT = 2.0  # the cosine from which on momentum is whole is one over this
_NUMBERS = ("iterations", "accepted", "radius", "reach", "_ready")

Batch = tuple[Objective, int]


class _Subdomain:
    """What one subdomain has of its own.

    Attributes:
        local: its local steps, with its metric.
        gradient: (n,) float32, of a minibatch at theta_k; the flat one itself where it is alone.
        loss, samples: of that minibatch.
    """

    def __init__(self, flat: FlatParameters, local: ScaledSolver, *, alone: bool) -> None:
        self.local = local
        self.gradient = flat.gradient if alone else torch.zeros_like(flat.gradient)
        self.loss, self.samples = math.nan, 0

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "loss": self.loss,
            "samples": self.samples,
            "gradient": self.gradient.clone(),
            "local": self.local.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.loss, self.samples = float(state["loss"]), int(state["samples"])
        self.gradient.copy_(state["gradient"])
        self.local.load_state_dict(state["local"])


class StochasticAPTS(interface.NoTorchOptimizer):
    """The optimizer, one outer iteration a ``step``.

    Every rank builds it over its own copy of the same network and calls ``step`` with its own
    minibatches; the parameters stay equal on all ranks.

    Args:
        parameters: of the network, float32, on one device; rank 0's values are broadcast.
            Or already flat, as ``FlatNetwork`` makes them.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them,
            which need the same number of threads and the same kind of device: what they compute
            redundantly must round alike.
        local_steps: of a subdomain an outer iteration.
        subdomains: of this rank, each with minibatches of its own; as many on every rank.
        radius: initial Delta; default searched. It is cut where that many would not lower the loss.
        shared: whether the joined correction becomes every subdomain's first moment.
        momentum: largest mu, 0 to below 1.
        averaging: how much more late iterates weigh in the average: the k-th enters with weight
            (1 + averaging) / (k + averaging). 0 is the plain mean, infinity the last iterate alone.
        rule: when corrections are taken and how Delta follows.
        compress: how corrections are sent: "none", or "bf16", "fp16" (compression.py).
        ahead: whether local steps are taken before their losses are looked at, for the same result
            (trust_region/scaled.py); default on a GPU. Takes three vectors more.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        flat: the parameters and gradients as vectors. radius: Delta.
        reach: displacement that lowered the loss at the start; Delta may be up to twice as large.
        average: (n,) float32, weighted average of the iterates.
    """

    OWN: ClassVar[tuple[str, ...]] = ("options", "subdomains", "lost")
    FORGETS: ClassVar[str] = "the gradient at the iterate"

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | FlatParameters,
        *,
        comm: Comm | MPI.Comm | None = None,
        local_steps: int = 20,
        subdomains: int = 1,
        radius: float | None = None,
        shared: bool = True,
        momentum: float = 0.0,
        averaging: float = 12.0,
        rule: NoisyRule | None = None,
        compress: str = "none",
        ahead: bool | None = None,
    ) -> None:
        local_steps = interface.whole("local_steps", local_steps)
        subdomains = interface.whole("subdomains", subdomains)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum {momentum} is outside [0, 1)")
        if not averaging >= 0.0:
            raise ValueError(f"averaging {averaging} is negative")
        if not isinstance(parameters, FlatParameters):
            parameters = FlatParameters(interface.parameters(parameters))
        self.comm = interface.communicator(comm)
        self.flat = flat = parameters
        self.momentum, self.averaging = momentum, averaging
        self.shared = interface.switch("shared", shared) and self.comm.size * subdomains > 1
        self.rule = rule or NoisyRule()
        self.radius = interface.first_radius(radius)
        self.reach = math.nan
        self.iterations = self.accepted = 0
        self._messages = CountedMessages(flat, self.comm, compress)
        ahead = flat.vector.is_cuda if ahead is None else ahead
        kept = [torch.zeros_like(flat.vector) for _ in range(3 if ahead else 0)]
        waiting = partial(self.comm.clock.phase, "gradient")
        self._subdomains = [
            _Subdomain(
                flat,
                ScaledSolver(
                    flat.vector, flat.gradient, steps=local_steps, kept=kept, waiting=waiting
                ),
                alone=subdomains == 1,
            )
            for _ in range(subdomains)
        ]
        self._start = torch.zeros_like(flat.vector)  # theta_k
        self._moved = torch.zeros_like(flat.vector)  # u
        self.average = torch.zeros_like(flat.vector)
        self._ratio = SmoothedRatio(self.rule.smoothing)
        self._losses: deque[float] = deque(maxlen=self.rule.window)
        self._ready = False  # whether the subdomains have a minibatch's gradient at theta_k
        self._left = 0  # torch's count of changes to the gradient, as the last step left it
        self._signs = FailureSigns()
        self._closures = Closures(flat, tells=self.comm.rank == 0)
        self.comm.require_same("a network", flat.describe())
        self.comm.broadcast_tensor(flat.vector)
        take_rank_zeros(flat.frozen, self.comm)
        self.average.copy_(flat.vector)

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
        interface.require_functions(batches, len(self._subdomains))
        self.flat.check_views()
        if self.flat.gradient._version != self._left and len(self._subdomains) == 1:
            self._ready = False

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
        """
        theta, kept = self.flat.vector, self._messages.vector
        kept.copy_(theta)
        theta.copy_(self.average)
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            theta.copy_(kept)
            torch.clear_autocast_cache()

    # ---- the method ------------------------------------------------------------------------

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration over each subdomain's minibatches, with or without gradients."""
        theta, start, joined = self.flat.vector, self._start, self._messages.vector
        if len(draws) != len(self._subdomains):
            raise ValueError(f"minibatches of {len(draws)} subdomains, not {len(self._subdomains)}")
        self._messages.work = 0.0
        start.copy_(theta)
        if not self._ready:
            self._evaluate_start(draws)

        # 1. each subdomain's local steps, each on a fresh minibatch
        controls, rows = list[Batch](), list[tuple[float, ...]]()
        for k, (own, draw) in enumerate(zip(self._subdomains, draws, strict=True)):
            local = self._local_steps(own, draw)
            theta.sub_(start).mul_(local.samples)
            (joined.copy_ if k == 0 else joined.add_)(theta)
            theta.copy_(start)
            control, samples = draw()
            before = self._loss_of(control, samples)
            controls.append((control, samples))
            rows.append((local.samples, samples, samples * before, local.accepted, local.tried))
        self._ready = False

        # 2. the corrections in one message, and behind them the control batch's loss at theta_k
        seen, controlled, before, steps, tried = self._messages.join(*rows)
        if not controlled > 0:
            raise ValueError("the ranks' batches have no samples")
        before = self._finite(before / controlled)
        if steps == 0:  # on no rank has anything moved
            self._messages.drop()
            self.radius = max(self.radius / 4.0, self.rule.minimum)
            self._moved.zero_()
            self._ratio.reset()
            return self._done(before, math.nan, False, math.nan, (0, tried))
        joined.div_(seen)
        if self.shared:
            for own in self._subdomains:
                own.local.share(joined, self.radius)
        mu = self._momentum(joined)
        self._moved.mul_(mu).add_(joined)
        s = joined.add_(self._moved, alpha=mu)

        # 3. the joined correction on trial, on samples it has not seen
        theta.add_(s)
        rows = [
            (own.samples * own.loss, own.samples * self._slope(own, s))
            for own in self._evaluated(controls)
        ]
        after, slope = (total / controlled for total in self._messages.sum(*rows))
        actual = before - after
        promised = 2.0 * actual + slope  # minus the slope of the parabola at theta_k

        # 4. taken or restored
        self._losses.append(before)
        noise = max(self._losses) - min(self._losses)
        accepted = math.isfinite(slope) and after <= max(self._losses) + noise
        if accepted:
            self._ready = True
            self.accepted += 1
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
        return self._done(after if accepted else before, rho, accepted, promised, (steps, tried))

    def _local_steps(self, own: _Subdomain, draw: Draw) -> ScaledResult:
        """A subdomain's local steps from theta_k, on the gradient that it has there."""
        if own.gradient is not self.flat.gradient:
            self.flat.attach_gradients()
            self.flat.gradient.copy_(own.gradient)
        with self.comm.clock.phase("algebra", "local steps"):
            local = own.local.run(
                draw, start=self._start, loss=own.loss, samples=own.samples, radius=self.radius
            )
        self._messages.count(local.evaluations)
        return local

    def _evaluated(self, batches: Iterable[Batch]) -> Iterator[_Subdomain]:
        """The subdomains, one after another, each with loss and gradient of its batch here."""
        for own, (objective, samples) in zip(self._subdomains, batches, strict=True):
            own.samples = samples
            own.loss = self._loss_of(objective, samples, with_gradient=True)
            if own.gradient is not self.flat.gradient:
                own.gradient.copy_(self.flat.gradient)
            yield own

    def _slope(self, own: _Subdomain, s: Tensor) -> float:
        return float(torch.dot(own.gradient, s)) if own.samples else 0.0

    def _momentum(self, joined: Tensor) -> float:
        """mu, less where the corrections turn away from what was taken before; (n,)."""
        if self.momentum == 0.0:
            return 0.0
        moved = self._moved
        lengths = float(torch.linalg.vector_norm(joined)) * float(torch.linalg.vector_norm(moved))
        if not lengths > 0.0:
            return 0.0
        agreement = float(torch.dot(joined, moved)) / lengths
        return self.momentum * min(max(_AGREEMENT * agreement, 0.0), 1.0)

    def _adapt(self, accepted: bool, actual: float, promised: float, slope: float) -> float:
        """Move Delta; returns the smoothed ratio."""
        if not accepted:
            self._ratio.reset()
            self.radius = self.rule.after_rejection(self.radius, promised, slope)
            return math.nan if not math.isfinite(actual) else actual / max(promised, abs(actual))
        rho = self._ratio.update(actual, promised)
        self.radius = min(self.rule.update(self.radius, rho), _BRACKET * self.reach)
        return rho

    def _weight(self) -> float:
        """Of the newest iterate in the average (Shamir and Zhang, arXiv 1212.1824)."""
        if math.isinf(self.averaging):
            return 1.0
        return (1.0 + self.averaging) / (self.accepted + self.averaging)

    def _evaluate_start(self, draws: Iterable[Draw]) -> None:
        """Losses and gradients at theta_k on a minibatch each; the first time, the radius too."""
        batches, joined = [draw() for draw in draws], self._messages.vector
        searching = math.isnan(self.reach)
        if searching:
            joined.zero_()
        for own in self._evaluated(batches):
            if searching and own.samples:  # the gradient, summed over samples
                joined.add_(own.gradient * own.samples)
        if searching:
            self._search(batches)
        self._ready = True

    def _search(self, batches: Sequence[Batch]) -> None:
        """Double a step along the joined gradient's signs while the loss falls.

        No further than the weights are large: at the start of a language model the loss falls along
        far longer steps, as soon as the frequent tokens are likely, and the rest is undone.

        Where that cannot be seen, Delta may grow as far as the weights are large.

        Costs a vector message, and forward evaluations with scalar messages.
        """
        theta, start, joined = self.flat.vector, self._start, self._messages.vector
        rows = [(own.samples * own.loss, own.samples) for own in self._subdomains]
        losses, total = self._messages.join(*rows, exact=True)
        if not total > 0:
            raise ValueError("the ranks' batches have no samples")
        loss = self._finite(losses / total)
        if not bool(joined.isfinite().all()):
            raise FloatingPointError(
                f"the gradient at the start of iteration {self.iterations + 1} is not finite: look "
                "for bad samples in the batch or a network that overflows"
            )
        slope = float(joined.abs().sum(dtype=torch.float64)) / total
        joined.sign_()

        def loss_at(displacement: float) -> float:
            torch.add(start, joined, alpha=-displacement, out=theta)
            rows = [(samples * self._loss_of(each, samples),) for each, samples in batches]
            return self._messages.sum(*rows)[0] / total

        largest = max(self.flat.weight_scale() or 1.0, _FIRST)
        step = search(loss_at, loss=loss, slope=slope, first=_FIRST, largest=largest)
        theta.copy_(start)
        self.reach = largest if math.isnan(step.length) else step.length
        longest = (_FIRST if math.isnan(step.length) else step.length) / _STEPS_IN_REACH
        if step.noisy:
            longest = _BLIND
        if self.comm.rank == 0 and step.why:
            step.warn(longest)
        elif self.comm.rank == 0 and self.radius > longest:
            log.warning(
                "the radius %.1e is cut to %.1e: longer steps do not lower the loss at the start",
                self.radius,
                longest,
            )
        self.radius = longest if math.isnan(self.radius) else min(self.radius, longest)

    def _loss_of(self, objective: Objective, samples: int, *, with_gradient: bool = False) -> float:
        if not samples:
            return 0.0
        return self._messages.evaluate(objective, samples, with_gradient=with_gradient)

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss at the start of iteration {self.iterations + 1} is {loss}: look for bad "
                "samples in the batch or a network that overflows"
            )
        return loss

    def _done(
        self, loss: float, rho: float, accepted: bool, promised: float, steps: tuple[float, float]
    ) -> Iteration:
        self.iterations += 1
        result = Iteration(
            loss=loss,
            rho=rho,
            accepted=accepted,
            radius=self.radius,
            local_reduction=promised,
            local_accepted=round(steps[0]),
            local_tried=round(steps[1]),
            gradient_evaluations=self._messages.work,
        )
        if self.comm.rank == 0:  # all ranks see the same
            self._signs.watch(result, at_floor=self.radius <= self.rule.minimum, noisy=True)
        return result

    # ---- state -----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """What a state belongs to."""
        return {
            "rank": self.comm.rank,
            "ranks": self.comm.size,
            "subdomains": len(self._subdomains),
            "parameters": self.flat.n,
            "shapes": zlib.crc32("\n".join(self.flat.describe()).encode()),
            "local_steps": self._subdomains[0].local.steps,
            "momentum": self.momentum,
            "shared": self.shared,
            "averaging": self.averaging,
            **asdict(self.rule),
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
            "ratio": [self._ratio.actual, self._ratio.promised],
            "moved": self._moved.clone(),
            "average": self.average.clone(),
            "subdomains": {str(k): own.state_dict() for k, own in enumerate(self._subdomains)},
            "lost": self._messages.state_dict(),
            "signs": asdict(self._signs),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore what ``state_dict`` gave on the same rank.

        Args:
            resized: the state is of a run with another number of ranks or subdomains, of any rank:
                local metrics are taken over, gradients at the iterate are not.

        Raises:
            ValueError: the state is another rank's, or of other options or another network.
        """
        besides = {"rank", "ranks", "subdomains", "shared", "local_steps"} if resized else set()
        require_options(self._options(), interface.options_in(state), besides=besides)
        with interface.of_a_state():
            for name in _NUMBERS:
                setattr(self, name, type(getattr(self, name))(state[name.strip("_")]))
            self._losses = deque(map(float, state["losses"]), maxlen=self._losses.maxlen)
            self._ratio.actual, self._ratio.promised = map(float, state["ratio"])
            self._moved.copy_(state["moved"])
            self.average.copy_(state["average"])
            self.flat.attach_gradients()
            for k, own in enumerate(self._subdomains):
                own.load_state_dict(state["subdomains"][str(k % len(state["subdomains"]))])
            self._signs = FailureSigns(**state["signs"])
            self._messages.load_state_dict({} if resized else state.get("lost", {}))
            self._left = self.flat.gradient._version
            if resized:
                self._ready = False
