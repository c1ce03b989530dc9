"""What the cost model is, and what its projections assume, in words."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.project.plan import Plan

MODEL = """\
Seconds of an outer iteration = minibatch evaluations (a forward one counts a third) x seconds of \
one + algebra (a part per iteration, a part per local step) + data + what is besides + vector \
messages + scalar messages, each of both with a barrier before it + waiting for the slowest rank. \
That wait is the expected maximum over the ranks of a rank's own time, less its mean: ranks draw \
from the measured distribution of iteration times of one rank, in the calmer half of its runs; \
beyond a quarter as many ranks as measured times, the larger of that and of a normal tail. \
Allreduce: the cheapest of ring, recursive doubling and Rabenseifner's (Thakur, Rabenseifner, \
Gropp 2005). Times are medians over iterations and repetitions; evaluation on test data is left \
out."""

PROOF = """\
Fitted to: compute, algebra, data and the spread of times, runs of strong and weak on one \
rank; messages, micro. Never to the configuration that is predicted. Ranks that share a \
machine slow each other down (memory, cache, clock): by how much is taken from other methods' runs \
with as many ranks (network: by strong and weak); beside it, the prediction without that. \
How many evaluations and messages an iteration of L-SR1 and first order has is the run's own \
count, for the others it follows from their steps. In brackets: the least and the largest median \
of a repetition. Rows with more ranks than cores are not used, but for network's, whose ranks \
then take turns in the model."""


def assumptions(plan: Plan) -> list[str]:
    """What the projections assume, a paragraph and then points."""
    baselines = "; ".join(
        f"{m.label}: {m.global_batch} samples over all ranks per step"
        + (f", at least {m.least_batch} per rank" if m.least_batch > 1 else "")
        + (f", {m.local_steps} steps per message" if m.local_steps else "")
        for m in plan.methods
        if m.method != "apts"
    )
    return [
        f"**Everything from here on is a projection.** The data set has {plan.samples:,} samples "
        f"whatever the ranks, {plan.samples // plan.ranks[-1]:,} per rank at {plan.ranks[-1]}; an "
        "epoch is as many sample gradients, a forward one counted a third. It says nothing of "
        "accuracy. Where more ranks mean more samples between messages (apts beyond 32 ranks, "
        "others where the least minibatch of a rank binds), the time of an epoch falls with the "
        "ranks, but more of them may be needed, which is not in here.",
        "One rank per node, each with a port of its own, no other traffic, no overlap of "
        "messages and compute; stragglers as spread as on the machine that was measured.",
        "apts: the program's own plan, some 10,500 samples of all ranks per outer iteration, at "
        f"least 5 steps, minibatches of 16 to 250. {baselines}.",
        "Compute and algebra of larger networks in proportion to parameters, from the measured "
        "one that is nearest; of minibatches that were not measured by a line through those that "
        "were, or in proportion.",
        *_machines(plan),
    ]


def _machines(plan: Plan) -> Iterator[str]:
    for network in plan.networks:
        link = network.link
        yield (
            f"{network.name}: {1e6 * link.latency:g} us, {1e-6 / link.per_byte:,.0f} MB/s, "
            f"{1e9 * link.reduction:g} ns to add a byte. {network.source}."
        )
    if plan.accelerator:
        a = plan.accelerator
        yield (
            f"{a.name}, **an assumption, not measured**: {a.flops / 1e12:g} TFLOP/s, memory at "
            f"{a.memory / 1e12:g} TB/s, {1e6 * a.launch:g} us per evaluation besides, messages "
            f"copied to its host and back at {a.copy / 1e9:g} GB/s."
        )
