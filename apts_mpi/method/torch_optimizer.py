"""What both classes of the public interface share: a method behind ``torch.optim.Optimizer``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.replicas import take_rank_zeros
from apts_mpi.method import interface, torch_state
from apts_mpi.method.batch_norm import renewed
from apts_mpi.method.closures import Closures
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.trust_region.metric import Span

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI

# Options that belong to the program's own networks: a loop's closures are only good while a step
# lasts, as the loop's variables name the next minibatch after it.
_INTERNAL = ("subdomains", "ahead")


class TorchOptimizer(torch.optim.Optimizer):
    """A method over a user's own loop; a class of it names its method."""

    __signature__: ClassVar[inspect.Signature]
    _kind: ClassVar[Any]
    _settings: ClassVar[tuple[str, ...]] = ()  # of parameter groups
    _method: Any = None
    last_iteration: Iteration | None = None

    def __init_subclass__(cls, *, method: Any = None, **others: Any) -> None:
        super().__init_subclass__(**others)
        if method is None:  # a user's own class of a method: with all that this has
            return
        cls._kind = method
        # For help(), and to name the arguments there are where another one is given.
        named = inspect.Parameter.KEYWORD_ONLY
        every = inspect.signature(cls.__init__).parameters.values()
        own = [each for each in every if each.kind is named]
        known = {each.name for each in own} | set(_INTERNAL)
        options = (each for each in fields(method._kinds[0]) if each.name not in known)
        cls.__signature__ = inspect.Signature(
            [
                inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                *own,
                *(inspect.Parameter(each.name, named, default=each.default) for each in options),
            ]
        )

    def __init__(
        self,
        params: Any,
        positional: tuple[Any, ...],
        comm: Comm | MPI.Comm | None,
        options: dict[str, Any],
        defaults: dict[str, float],
    ) -> None:
        kind, known = type(self).__name__, tuple(inspect.signature(type(self)).parameters)
        if positional:
            raise TypeError(f"{kind} takes params alone by position; name the others")
        interface.require_known(kind, known, options)
        self._options, self._averaging = options, False
        super().__init__(interface.groups(params, self._settings), defaults)
        self.comm = interface.communicator(comm)
        self._build()

    # ---- parameters ------------------------------------------------------------------------

    @property
    def _everything(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _spans(self) -> list[Span]:
        """Of the groups with parameters to train."""
        spans, stop = list[Span](), 0
        for group in self.param_groups:
            count = sum(p.numel() for p in group["params"] if p.requires_grad)
            stop += count
            numbers = group.get("radius_scale", 1.0), group.get("weight_decay", 0.0)
            if count:
                spans.append(Span(stop, *map(float, numbers)))
        return spans

    def _build(self) -> None:
        """The method over the parameters that require a gradient now."""
        flat = FlatParameters(self._everything, self._spans())
        several = self.comm.size > 1
        method = self._kind(flat, comm=self.comm, **self._options)
        if self._method is not None:
            method.done = self._method.done
        take_rank_zeros(flat.frozen, self.comm)
        self._method, self._trained = method, [p for p in self._everything if p.requires_grad]
        self._closures = Closures(
            flat, warns=self.comm.rank == 0, failed=self._fail if several else None
        )
        self._gradient_version = flat.gradient._version

    def _fail(self, error: Exception) -> None:
        """All ranks are to know of it."""
        if self._method.messages.error is None:
            self._method.messages.error = error

    def _rebuild(self, shared: Mapping[str, Any] | None = None) -> None:
        """After parameters were frozen, unfrozen or added; what is known of the others stays.

        An outer iteration in progress is abandoned.

        Args:
            shared: of a state, what all ranks are to have.
        """
        interface.require_plain(self._everything)
        self._method.abandon()
        state, before = self.state_dict(), self._trained
        if shared is not None:
            torch_state.overlay(state, shared)
        for p in before:
            if not p.requires_grad:
                p.data = p.data.clone()  # no part of the vector any more
        self._build()
        self._restore(state, resized=True)

    def _change(self) -> None:
        """Other parameters are to be trained, on all ranks alike."""
        self._rebuild()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters from now on; every rank calls it. See ``torch.optim``."""
        super().add_param_group(interface.group(param_group, self._settings))
        self.param_groups[-1] = torch_state.Group(self.param_groups[-1])
        if self._method is not None:
            self._change()

    def _settle(self) -> None:
        """Before a minibatch: the parameters are still those that the method trains."""
        if self._averaging:
            raise RuntimeError("a step within averaged(): leave it first, to train the iterate")
        if list(map(id, self._trained)) != [id(p) for p in self._everything if p.requires_grad]:
            self._change()
        self._method.flat.check_views()

    # ---- what torch's optimizers have ------------------------------------------------------

    @property
    def radius(self) -> float:
        """Delta."""
        return float(self._method.radius)

    @property
    def iterations(self) -> int:
        """Outer iterations done so far."""
        return int(self._method.iterations)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing, for loops that call it: a step makes its gradients by itself."""

    @contextmanager
    def averaged(
        self, model: nn.Module | None = None, batches: Iterable[Any] = ()
    ) -> Iterator[None]:
        """Within, the network has the parameters to evaluate or save, the same on every rank.

        Args:
            model: in training mode, to have the running statistics of its BatchNorm layers computed
                for these parameters, of all ranks' samples, until the end; every rank calls it.
            batches: of this rank's training samples, as its loader gives them, (x, ...); the first
                2048 samples are used.

        Raises:
            RuntimeError: it is nested. ValueError, TypeError, AgreedError: on every rank, where a
                rank's batches do not go through the model.
        """
        if self._averaging:
            raise RuntimeError("averaged() within averaged()")
        self._averaging = True
        try:
            with self._method.averaged(), renewed(model, batches, self.comm):
                yield
        finally:
            self._averaging = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch's GradScaler looks at before it steps."""
        raise RuntimeError(
            "no GradScaler: a step takes a closure and makes its gradients by itself; use "
            "torch.autocast with bfloat16, which needs no scaling"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{type(self).__name__} is neither copied nor pickled: its module's parameters are "
            "parts of its vectors; save state_dict() and load it into another one"
        )

    # ---- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, the iterate included, in torch's form.

        Amid an outer iteration it is the state that the iteration began from.
        """
        state = self._in_form(self._method.state_dict())
        state["method"] |= self._counters()
        return state

    def _in_form(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state of the method, or a part of one, in torch's form, with the iterate."""
        method, n = self._method, self._method.flat.n
        vectors = torch_state.vectors_of(state, n)
        rest = torch_state.without(state, vectors)
        numbers = {id(p): k for k, p in enumerate(self._everything)}
        entries: dict[int, dict[str, Tensor]] = {numbers[id(p)]: {} for p in self._trained}
        for name, vector in {"iterate": method.iterate_vector, **vectors}.items():
            parts = torch_state.cut(vector, self._trained)
            for each, part in zip(entries.values(), parts, strict=True):
                each[name] = part
        groups = [
            {**group, "params": [numbers[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": entries, "param_groups": groups, "method": rest}

    def _counters(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave, and put its iterate into the parameters.

        Every rank calls it, with its own state or all with the state of one. In the second case,
        and on another number of ranks, the gradient at the iterate is evaluated anew, from one more
        minibatch; the rest continues.

        Raises:
            ValueError, AgreedError: on every rank, where it does not fit.
        """
        method, state = self._method, state_dict
        shapes = [p.shape for p in self._everything]
        exact = False
        with self.comm.together():
            why = torch_state.misfit(state, self.param_groups, shapes)
            if why:
                raise ValueError(why)
            if self._averaging:
                raise RuntimeError("load_state_dict within averaged(): leave it first")
            saved, own = state["method"].get("options", {}), method.belongs()
            exact = all(saved.get(name) == own[name] for name in ("rank", "ranks"))
            exact &= set(state["state"]) == set(self.state_dict()["state"])
        numbers = {name: state["method"].get(name) for name in ("iterations", "radius")}
        self.comm.require_same("a state", [f"{name} {value}" for name, value in numbers.items()])
        other = np.array([0.0 if exact else 1.0])
        self.comm.maximum(other)
        with self.comm.together():
            self._restore(state, resized=bool(other[0]))
        self.comm.check_replicas(self._method.flat.vector)

    def _restore(self, state: Mapping[str, Any], *, resized: bool) -> None:
        method, trained = self._method, self._trained
        for group, saved in zip(self.param_groups, state["param_groups"], strict=False):
            group.update({k: v for k, v in saved.items() if k in self._settings})
        numbers = {id(p): k for k, p in enumerate(self._everything)}
        saved_entries = [state["state"].get(numbers[id(p)], {}) for p in trained]
        rest = torch_state.without(state["method"], ())
        own = method.belongs()
        rest["options"] = {**rest["options"], **{k: own[k] for k in ("parameters", "shapes")}}
        names = {name for entries in saved_entries for name in entries}
        vectors = {name: torch_state.joined(name, saved_entries, trained) for name in names}
        for name, vector in vectors.items():
            if name != "iterate":
                torch_state.put(rest, name, vector)
        if not all(saved_entries):
            for each in rest["subdomains"].values():
                if "local" in each:
                    torch_state.learned_once(each["local"])
        others = set(state["state"]) != {numbers[id(p)] for p in trained}
        if resized and others and "global_model" in rest:
            rest["global_model"] = method.state_dict()["global_model"]
        method.load_state_dict(rest, resized=resized)
        if "iterate" in vectors:
            method.flat.vector.copy_(vectors["iterate"])
        self._gradient_version = method.flat.gradient._version
