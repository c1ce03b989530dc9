"""The classes of the public interface, as ``torch.optim`` has them.

Both keep the parameters of all ranks equal between outer iterations. They take closures, since a
trust region asks what the loss of the same samples is elsewhere. docs/python.md is for their users.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import RanksLost
from apts_mpi.method import interface
from apts_mpi.method.apts import DeterministicMethod
from apts_mpi.method.joining import Joining
from apts_mpi.method.options import StochasticOptions
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.method.surviving import Heard
from apts_mpi.method.torch_optimizer import TorchOptimizer

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI

log = logging.getLogger("apts_mpi")

Closure = Callable[[], Tensor]


class StochasticAPTS(Joining, method=StochasticMethod):
    """Trains on fresh minibatches, one per ``step``, on this rank and all others.

    Args:
        params: the network's, ``named_parameters()``, or parameter groups with ``weight_decay`` and
            ``radius_scale`` of their own: float32, on one device; rank 0's values are broadcast.
        steps: minibatches of the whole run on this rank, ``epochs * len(loader)``, so that steps
            shorten over its last quarter (``cooldown``); without it they do not.
        classification: whether that is the task, which bounds how far a fully connected network's
            iterations go; on all ranks alike.
        weight_decay: decoupled, as AdamW's: a local step multiplies the parameters by
            ``1 - radius * weight_decay``.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them.
        on_lost_ranks: have the loop go on where ranks die (mpirun --with-ft ulfm), which is then
            within ``join``. Called on every rank that is left with its rank, their number and that
            of the iterations, to cut the data anew; ``comm`` is another one then.
        options: the fields of ``StochasticOptions`` (options.py), which has what they mean.

    Raises:
        TypeError, ValueError: an argument is unusable; the message says what to do.
        AgreedError: on every rank, where the ranks' networks differ.
        RuntimeError: with ``on_lost_ranks``, where MPI or its launcher cannot.

    Attributes:
        last_iteration: what the last outer iteration did (``Iteration``); None before the first.
        iterations: outer ones done so far. radius: of the trust region. comm: the ranks.
    """

    _settings: ClassVar[tuple[str, ...]] = ("weight_decay", "radius_scale")

    def __init__(
        self,
        params: Iterable[Any],
        *positional: Any,
        steps: int | None = None,
        classification: bool = False,
        weight_decay: float = 0.0,
        comm: Comm | MPI.Comm | None = None,
        on_lost_ranks: Heard | None = None,
        **options: Any,
    ) -> None:
        if steps is not None and interface.count(steps, "steps", "minibatches of the run") < 1:
            raise ValueError(f"steps {steps} must be at least 1")
        StochasticOptions(weight_decay=weight_decay)  # checks it
        self.steps, self._taken = steps, 0
        self._counts: bool | None = None  # whether steps are given their samples
        own = {"weight_decay": weight_decay, "radius_scale": 1.0}
        ranks = self._outlive(interface.communicator(comm), on_lost_ranks)
        told = ranks.sum_scalars([float(classification is True)])[0]
        if told not in (0.0, ranks.size):
            raise ValueError(
                f"classification is True on {told:g} of {ranks.size} ranks: give it on all or none"
            )
        options["classification"] = classification
        super().__init__(params, positional, ranks, options, own)
        self._remember()

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        samples: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Take the rank's next minibatch; every rank calls it, equally often (or see ``join``).

        Args:
            closure: returns the mean loss over the minibatch, a scalar tensor; of one that does not
                fit into memory several, each of a chunk. It may call ``backward``. Called once, as
                a rule; of every control batch (one in ``local_steps``) twice, of the first
                minibatch some ten times more, always before ``step`` returns. All calls see the
                same random numbers (dropout) from the default generators of torch, numpy, random.
            samples: that its mean is over, of several closures one number each: the ranks' steps
                weigh by them. By default all minibatches weigh alike. With 0 the closure is not
                called.

        Returns:
            The minibatch's loss, (), as the closure gave it first.

        Raises:
            FloatingPointError: on every rank, if the loss at the iterate is not finite on a control
                batch. A local minibatch whose loss is not finite is passed over.
            AgreedError: the closure of another rank has raised an error.
        """
        closures, weights, count = interface.minibatch(closure, samples)
        if count and self._counts not in (None, samples is not None):
            raise ValueError("give samples in every step, or in none: minibatches weigh by them")
        self._counts = samples is not None if count else self._counts
        self._require_join()
        while True:
            try:
                self._settle()
                with self._closures.called():
                    objective, bare = self._closures.objective(*closures, weights=weights)
                    self._take((objective, count))
                break
            except RanksLost:
                if self._survivors is None:
                    raise
                self._recover()
        self._taken += 1
        device = self._method_now.flat.vector.device
        return torch.tensor(torch.nan, device=device) if bare.first is None else bare.first

    def _settle(self) -> None:
        super()._settle()
        method = self._method_now
        if method.in_progress:
            return
        for group in self.param_groups:
            interface.require_settings(group, self._settings)
        spans = self._spans()
        if spans != method.flat.spans:
            method.set_spans(spans)
        if method.flat.gradient._version != self._gradient_version:
            method.now.known = False  # someone has changed the gradient that would come first
        if self.steps is not None:
            if self._taken == self.steps and self.comm.rank == 0:
                log.warning("all %d steps are done: further ones hardly move", self.steps)
            method.done = min(self._taken, self.steps - 1) / self.steps

    # ---- evaluation and state --------------------------------------------------------------

    @contextmanager
    def averaged(
        self, model: nn.Module | None = None, batches: Iterable[Any] = ()
    ) -> Iterator[None]:
        """As the base class's; the parameters are the average of the iterates.

        The same also amid an outer iteration.
        """
        method = self._method_now
        if not method.now.accepted and self._taken and self.comm.rank == 0:
            log.warning(
                "no outer iteration is complete after %d steps: the average is where training "
                "began; give fewer local_steps (%d)",
                self._taken,
                method.options.local_steps,
            )
        with super().averaged(model, batches):
            yield

    averaged.__doc__ = TorchOptimizer.averaged.__doc__

    def _counters(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state_dict: Any) -> None:
        """As ``TorchOptimizer``'s."""
        super().load_state_dict(state_dict)
        self._taken = int(state_dict["method"]["taken"])

    load_state_dict.__doc__ = TorchOptimizer.load_state_dict.__doc__


class APTS(TorchOptimizer, method=DeterministicMethod):
    """The method as published, one outer iteration per ``step``, all of it on one batch.

    Args:
        params: the network's, ``named_parameters()``, or parameter groups, without settings of
            their own: float32, on one device; rank 0's values are broadcast.
        comm: the ranks that work together, also as mpi4py's communicator; default all of them.
        options: the fields of ``APTSOptions`` (options.py), which has what they mean.

    Raises:
        TypeError, ValueError: an argument is unusable; the message says what to do.
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        last_iteration: what the last outer iteration did (``Iteration``); None before the first.
        iterations: outer ones done so far. radius: of the trust region.
    """

    _method: DeterministicMethod | None

    def __init__(
        self,
        params: Iterable[Any],
        *positional: Any,
        comm: Comm | MPI.Comm | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, positional, comm, options, {})

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        samples: int | Sequence[int] | None = None,
        *,
        same_batch: bool = False,
    ) -> Tensor:
        """One outer iteration; every rank calls it.

        Args:
            closure: returns the mean loss over the batch, a scalar tensor, always over the same
                samples during the call; several, each of a chunk. It may call ``backward``. Called
                ten to twenty times, always before ``step`` returns.
            samples: that its mean is over, of several closures one number each; weighs a rank among
                the others. By default all weigh alike. With 0 the closure is not called; not all
                ranks may have 0.
            same_batch: the next call's batch is this call's (training on the whole shard): what is
                known at the new iterate is then not evaluated again. Of closures that draw random
                numbers (dropout) it has no effect, as their batch is another one each time.

        Returns:
            The batch's loss where the parameters were, ().

        Raises:
            FloatingPointError: on every rank, if the loss at the iterate is not finite.
            AgreedError: the closure of another rank has raised an error.
        """
        closures, weights, count = interface.minibatch(closure, samples)
        self._settle()
        with self._closures.called():
            objective, bare = self._closures.objective(
                *closures, weights=weights, repeats=same_batch
            )
            self.last_iteration = self._method_now.iterate(lambda: (objective, count))
        device = self._method_now.flat.vector.device
        return torch.tensor(torch.nan, device=device) if bare.first is None else bare.first

    @property
    def _method_now(self) -> DeterministicMethod:
        assert self._method is not None
        return self._method
