"""What both methods share: equal ranks at the start, one message, the state and its round trip."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import interface
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import FailureSigns, Iteration
from apts_mpi.method.messages import CountedMessages
from apts_mpi.method.options import Options, first_radius
from apts_mpi.method.state import Numbers
from apts_mpi.method.subdomain import Subdomain

_REMEDY = "look for bad samples in the batch or a network that overflows"


class Method:
    """The frame of a method.

    Every rank builds it over its own copy of the same network and iterates with its own samples;
    the parameters stay equal on all ranks. A class of it names the class of its options, whose
    fields are its arguments, and that of its numbers.

    Args:
        flat: the parameters; rank 0's values are broadcast. comm: the ranks that work together. All
            need the same number of threads and the same kind of device: what they compute
            redundantly must round alike.
        given: the fields of its options (options.py).

    Raises:
        TypeError, ValueError: an option is unusable; the message says what to do.
        AgreedError: on every rank, where the ranks' networks differ.

    Attributes:
        flat: the parameters and gradients as vectors. options: as given, with the defaults.
        now: the numbers of the present iterate, ``radius`` and ``iterations`` among them.
        done: part of the run's work that is done, 0 to 1, where the caller knows its length; it is
            set before an iteration.
        messages: the sums over ranks.
    """

    done = 0.0

    PER_RANK: ClassVar[tuple[str, ...]] = ("options", "subdomains", "lost")
    LOST_ON_RESIZE: ClassVar[str]
    MAY_DIFFER_ON_RESIZE: ClassVar[set[str]] = {"rank", "ranks", "subdomains", "local_steps"}

    options: Options
    now: Numbers
    _subdomains: Sequence[Subdomain]
    _kinds: ClassVar[tuple[Any, Any]]

    def __init_subclass__(
        cls, *, options: type | None = None, numbers: type | None = None, **others: Any
    ) -> None:
        super().__init_subclass__(**others)
        if options is not None:
            cls._kinds = options, numbers

    def __init__(self, flat: FlatParameters, comm: Comm, given: dict[str, Any]) -> None:
        kind, numbers = self._kinds
        self.options = options = kind(**given)
        self.now = numbers(radius=first_radius(options.radius))
        self.rule = options.radius_rule
        self.comm, self.flat = comm, flat
        self.messages = CountedMessages(flat, comm, options.compress)
        self._start = torch.zeros_like(flat.vector)  # theta_k
        self._losses: deque[float] = deque(maxlen=options.window)
        self._signs = FailureSigns()
        comm.require_same("a network", flat.describe())
        comm.broadcast_tensor(flat.vector)

    @property
    def radius(self) -> float:
        """Delta."""
        return self.now.radius

    @property
    def iterations(self) -> int:
        """Done so far."""
        return self.now.iterations

    @property
    def several(self) -> bool:
        """Whether there is more than one subdomain, over all ranks."""
        return self.comm.size * self.options.subdomains > 1

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the network has the parameters to evaluate: the iterate itself."""
        return nullcontext()

    def _require_finite(self, loss: float, *, gradient: bool = True) -> float:
        """The loss at the start of an iteration; ``gradient``: whether that is finite there."""
        if math.isfinite(loss) and gradient:
            return loss
        where = f"at the start of iteration {self.now.iterations + 1} is"
        if math.isfinite(loss):
            raise FloatingPointError(f"the gradient {where} not finite: {_REMEDY}")
        raise FloatingPointError(f"the loss {where} {loss}: {_REMEDY}")

    def _done(self, *, noisy: bool, steps: tuple[float, float], **did: Any) -> Iteration:
        """Count an iteration; ``steps``: local ones accepted and tried, over all ranks."""
        self.now.iterations += 1
        result = Iteration(
            radius=self.now.radius,
            local_accepted=round(steps[0]),
            local_tried=round(steps[1]),
            gradient_evaluations=self.messages.work,
            **did,
        )
        if self.comm.rank == 0:  # all ranks see the same
            at_floor = self.now.radius <= self.rule.minimum
            self._signs.watch(result, at_floor=at_floor, noisy=noisy)
        return result

    @property
    def iterate_vector(self) -> Tensor:
        """(n,) theta_k."""
        return self.flat.vector

    def abandon(self) -> None:
        """End an iteration in progress, back where it began."""

    # ---- state -----------------------------------------------------------------------------

    def _vectors(self) -> dict[str, Tensor]:
        """The vectors (n,) that a restart needs, by their names in a state."""
        raise NotImplementedError

    def belongs(self) -> dict[str, Any]:
        """What a state belongs to."""
        return {
            "rank": self.comm.rank,
            "ranks": self.comm.size,
            "parameters": self.flat.n,
            "shapes": zlib.crc32("\n".join(self.flat.describe()).encode()),
            **self.options.kept(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a restart needs; tensors and plain numbers.

        Every rank saves its state and loads it again; but for the entries that ``PER_RANK`` names
        it is the same on all of them.
        """
        own = {name: v.clone() for name, v in self._vectors().items() if name in self.PER_RANK}
        return {
            **self.shared_state(),
            "options": self.belongs(),
            **own,
            "subdomains": {
                str(k): subdomain.state_dict() for k, subdomain in enumerate(self._subdomains)
            },
            "lost": self.messages.state_dict(),
        }

    def shared_state(self) -> dict[str, Any]:
        """The entries of ``state_dict`` that are the same on all ranks."""
        return {
            **asdict(self.now),
            "losses": list(self._losses),
            **{n: v.clone() for n, v in self._vectors().items() if n not in self.PER_RANK},
            "signs": asdict(self._signs),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore what ``state_dict`` gave on the same rank.

        Args:
            resized: the state is of a run with another number of ranks or subdomains, of any rank:
                what ``LOST_ON_RESIZE`` says is not restored.

        Raises:
            ValueError: the state is another rank's, or of other options or another network.
        """
        except_for = self.MAY_DIFFER_ON_RESIZE if resized else set()
        interface.require_options(self.belongs(), state, except_for=except_for)
        with interface.loading_state():
            self._restore(state, resized=resized)

    def _restore(self, state: dict[str, Any], *, resized: bool) -> None:
        for name, value in vars(self.now).items():
            setattr(self.now, name, type(value)(state[name]))
        self.now.known &= not resized
        self._losses = deque(map(float, state["losses"]), maxlen=self._losses.maxlen)
        for name, vector in self._vectors().items():
            if not (resized and name in self.PER_RANK):
                vector.copy_(state[name])
        self.flat.attach_gradients()
        states = state["subdomains"]
        for k, subdomain in enumerate(self._subdomains):
            subdomain.load_state_dict(states[str(k % len(states))], resized=resized)
        self.messages.load_state_dict({} if resized else state.get("lost", {}))
        self._signs = FailureSigns(**state["signs"])
