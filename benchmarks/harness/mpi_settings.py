"""The known settings of Open MPI by name, as a job's environment or a line of a job script."""

from __future__ import annotations

import os
from collections.abc import Mapping

from apts_mpi.errors import InputError
from benchmarks.harness.jobs import ENVIRONMENT

# Ranks that wait give their core to the kernel's network work and to each other.
_YIELD = {"mpi_yield_when_idle": "1"}
# Messages up to this length are sent at once; above, a handshake sends one way at a time.
_EAGER = {
    "btl_tcp_eager_limit": "8388608",
    "btl_tcp_rndv_eager_limit": "8388608",
    "btl_tcp_sndbuf": "4194304",
    "btl_tcp_rcvbuf": "4194304",
}


def _allreduce(algorithm: int) -> dict[str, str]:
    """One of the "tuned" component's algorithms at every size; "han" would go before it."""
    return {
        "coll": "^han",
        "coll_tuned_use_dynamic_rules": "1",
        "coll_tuned_allreduce_algorithm": str(algorithm),
    }


# MCA parameters of Open MPI 5. An MPI library that is not Open MPI reads none of them.
SETTINGS: dict[str, dict[str, str]] = {
    "defaults": {},
    "yield": _YIELD,
    "eager": {**_YIELD, **_EAGER},
    "doubling": {**_YIELD, **_allreduce(3)},
    "ring": {**_YIELD, **_allreduce(4), **_EAGER},
    "rabenseifner": {**_YIELD, **_allreduce(6), **_EAGER},
    "tuned": {**_YIELD, **_allreduce(3), **_EAGER},
}
TUNED = SETTINGS["tuned"]


def named(name: str) -> dict[str, str]:
    """The settings of this name.

    Raises:
        InputError: there are none.
    """
    if name not in SETTINGS:
        raise InputError(f"MPI settings {name!r} are none of {', '.join(SETTINGS)}")
    return SETTINGS[name]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these MCA parameters and none other of ``SETTINGS``.

    They come by environment, so that mpirun and srun take the same, and a job script may have
    them as the lines of ``export_line``. What else the user has set is left alone.
    """
    known = {_variable(name) for options in SETTINGS.values() for name in options}
    kept = {name: value for name, value in os.environ.items() if name not in known}
    given = {name: value for name, value in ENVIRONMENT.items() if name not in known}
    return {**given, **kept, **{_variable(name): value for name, value in settings.items()}}


def export_line(settings: Mapping[str, str]) -> str:
    """A line of shell that sets these MCA parameters; a comment where there are none."""
    if not settings:
        return "# Open MPI's defaults: nothing to set"
    return "export " + " ".join(f"{_variable(name)}={value}" for name, value in settings.items())


def _variable(name: str) -> str:
    return f"OMPI_MCA_{name}"
