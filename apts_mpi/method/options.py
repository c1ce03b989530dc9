"""The method's choices by name."""

from __future__ import annotations

BASELINES = ("adam", "sgd", "local-sgd", "diloco")
OPTIMIZERS = ("apts", *BASELINES)
LOCAL_SOLVERS = ("scaled", "sr1", "first-order")
DETERMINISTIC = LOCAL_SOLVERS[1:]
NORMS = ("2", "inf")
JOINS = ("adaptive", "average", "sum")
SGD_MOMENTUM = 0.9  # of sgd and of local-sgd's steps
