"""The methods and their messages on 1 to 8 real ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Finished

MESSAGES = (
    *("rows_of_scalars", "sums", "exact_on_request", "non_finite"),
    *("wishes", "traffic", "other_operations"),
    *("device_memory", "gpu_aware_falls_back"),
)
BAD_LUCK = (
    *("lone_bad_step", "all_steps_taken_back", "lone_bad_iterate", "lone_bad_trial"),
    "rank_without_samples",
)
ON_RANKS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"mpi": ("fused_sum",), "joining": MESSAGES},
    2: {
        "mpi": ("diverged_replicas",),
        "apts": ("identical_data", "message_counts", "first_batch_empty"),
        "joining": (
            *(*MESSAGES, "restored", "rejected"),
            *("deterministic_as_well", "trained_as_well"),
        ),
        "baseline": ("averaged_gradients", "identical_data", "different_networks"),
        "stochastic": ("identical_data", "simulated_ranks", "restored_ranks"),
        "luck": BAD_LUCK,
        "module": ("unlike_at_the_start", "refused_on_one_rank", "classes_take_rank_zeros"),
    },
    3: {
        "mpi": ("agreement", "refused_by_the_machine", "faults_of_the_program"),
        "apts": (
            *("weighted_loss", "radius_bounds_correction", "lone_non_finite_trial"),
            *("rank_without_samples", "restored_ranks", "different_networks"),
        ),
        "joining": MESSAGES,
        "baseline": (
            *("averaged_gradients", "local_sgd_of_one_step", "simulated_replicas"),
            *("one_message", "empty_batches", "non_finite"),
        ),
        "stochastic": ("simulated_ranks", "restored_ranks"),
        "luck": BAD_LUCK,
    },
    4: {
        "apts": ("identical_data", "first_order_consistency"),
        "stochastic": ("identical_data",),
        "luck": ("mislabelled_rank", "unlike_losses"),
    },
    5: {"joining": MESSAGES},  # on hosts of 2, 2 and 1, and of 1 and 4
    8: {"mpi": ("fused_sum",), "apts": ("first_order_consistency",)},
}


CHECKS = [
    (ranks, f"{kind}.{name}")
    for ranks, kinds in ON_RANKS.items()
    for kind, names in kinds.items()
    for name in names
]


JOBS: dict[tuple[int, str], Finished] = {}  # by ranks and kind


@pytest.mark.parametrize(("ranks", "name"), CHECKS)
def test_holds_on_every_rank(
    program: Callable[..., Finished], request: pytest.FixtureRequest, ranks: int, name: str
) -> None:
    """One job has all checks of a kind; those behind one that failed have jobs of their own."""
    kind = name.split(".")[0]
    wanted = [
        each
        for many, each in CHECKS
        if many == ranks and each.startswith(f"{kind}.") and selected(request, many, each)
    ]
    if (ranks, kind) not in JOBS:
        JOBS[ranks, kind] = program(ranks, *wanted, timeout=300)
    run = JOBS[ranks, kind]
    begun = [line for line in run.out.splitlines() if line in wanted]
    if run.status != 0 and name not in begun:
        run = program(ranks, name)
        begun = [name]
    assert run.status == 0 or name != begun[-1], run.out + run.err
    assert name in run.out.splitlines()


def selected(request: pytest.FixtureRequest, ranks: int, name: str) -> bool:
    """Whether pytest was asked for that check."""
    return any(item.name.endswith(f"[{ranks}-{name}]") for item in request.session.items)
