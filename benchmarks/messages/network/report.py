"""Which settings ``network`` tunes and runs, given what is known; and its tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import tables
from benchmarks.harness.results import Results, Row
from benchmarks.messages.network.plan import DDP, Method, Network, Plan

TUNE = "network-tune"
TUNED_ON = 2  # ranks of this machine; the minibatch of all ranks is what counts


def tuning(plan: Plan, network: Network, method: Method) -> Iterator[Row]:
    """The runs that find a method's learning rates."""
    for batch in method.batches:
        for lr in method.learning_rates:
            yield _settings(plan, TUNE, TUNED_ON, "none", network, method, batch, lr, 0)


def _settings(
    plan: Plan,
    benchmark: str,
    hosts: int,
    link: str,
    network: Network,
    method: Method,
    batch: int | None,
    lr: float | None,
    repetition: int,
) -> Row:
    return {
        **{"benchmark": benchmark, "hosts": hosts, "link": link, "method": method.name},
        **{"hidden": network.hidden, "batch": batch, "lr": lr, "repetition": repetition},
        "plan": plan.key(network, method),
    }


def best_rate(
    plan: Plan, results: Results, network: Network, method: Method, batch: int
) -> float | None:
    """The learning rate that needed least work to the target; None where no run reached it."""
    ranked = []
    for settings in tuning(plan, network, method):
        row = results.get(settings) if settings["batch"] == batch else None
        if row is not None and row["epochs_to_target"] is not None:
            ranked.append((row["epochs_to_target"], settings["lr"]))
    return min(ranked)[1] if ranked else None


def best_batch(
    plan: Plan, results: Results, link: str, network: Network, method: Method, hosts: int
) -> tuple[int, float] | None:
    """Minibatch of all ranks and rate that were soonest at the target over a link, seed 0."""
    ranked = []
    for batch in method.batches:
        lr = best_rate(plan, results, network, method, batch)
        if lr is None:
            continue
        row = results.get(_settings(plan, "network", hosts, link, network, method, batch, lr, 0))
        if row is not None and row["seconds_to_target"] is not None:
            ranked.append((row["seconds_to_target"], batch, lr))
    return min(ranked)[1:] if ranked else None


def wanted(
    plan: Plan,
    results: Results,
    link: str,
    network: Network,
    method: Method,
    hosts: int,
    repetition: int,
) -> Iterator[Row]:
    """The runs of a method and seed over a link: with seed 0 every minibatch at its best rate."""
    pairs: list[tuple[int | None, float | None]] = []
    if not method.tuned and not method.like:
        pairs.append((None, None))
    elif method.tuned and repetition == 0:
        for batch in method.batches:
            lr = best_rate(plan, results, network, method, batch)
            pairs += [(batch, lr)] if lr is not None else []
    else:
        tuned = plan.method(method.like) if method.like else method
        found = best_batch(plan, results, link, network, tuned, hosts)
        pairs += [found] if found is not None else []
    for pair in pairs:
        yield _settings(plan, "network", hosts, link, network, method, *pair, repetition)


def best_runs(
    plan: Plan, results: Results, link: str, network: Network, method: Method, hosts: int
) -> list[Row]:
    """The runs of a method at its best minibatch and rate, one per seed that was run."""
    found = []
    for repetition in range(plan.repetitions):
        rows = [
            row
            for settings in wanted(plan, results, link, network, method, hosts, repetition)
            if (row := results.get(settings)) is not None
        ]
        if repetition == 0 and method.tuned:
            best = best_batch(plan, results, link, network, method, hosts)
            rows = [row for row in rows if best and row["settings"]["batch"] == best[0]]
        found += rows
    return found


def write(path: Path, plan: Plan, results: Results) -> None:
    """Write the tables."""
    parts, used = [], []
    outside = [method for method in plan.methods if method.name == DDP]
    for hosts, network in itertools.product(plan.hosts, plan.networks):
        body: list[list[object]] = []
        parameters = 0
        for link in plan.links:
            runs_of = {
                method.name: best_runs(plan, results, link, network, method, hosts)
                for method in plan.methods
            }
            base = _seconds(runs_of[DDP]) if outside else []
            for method in plan.methods:
                runs = runs_of[method.name]
                whole = [row for row in runs if "diverged" not in row]
                used += whole
                if whole:
                    parameters = whole[0]["parameters"]
                    edge = _at_edge(whole[0]["settings"], method, plan)
                    body.append(_line(link, method, runs, whole, base, edge))
        if body:
            parts += [
                f"## {hosts} hosts, 784-{network.hidden.replace(',', '-')}-10, "
                f"{parameters:,} parameters",
                *([_OVERSUBSCRIBED] if any(_shared(row, hosts) for row in used) else []),
                tables.markdown(_HEADER, body, text=2),
            ]
    if not parts:
        tables.write(path, "# Time to an accuracy over narrow links", "No runs yet.")
        return
    tables.write(
        path,
        "# Time to an accuracy over narrow links",
        f"MNIST, test accuracy {100 * plan.target:g} %, hosts that are network namespaces of one "
        f"machine, one rank and one thread each; Open MPI over TCP with the settings "
        f"'{plan.mpi}' of `micro`, PyTorch's DistributedDataParallel (ddp-adam) with gloo. Seconds "
        "without start-up and evaluation, but with what apts-auto measures first; median, least "
        "and largest of the seeds. What has a learning rate is at its best one, and at the "
        "minibatch (of all ranks) that was soonest over that link; * marks one at the edge of what "
        "was tried; adam has those of ddp-adam. `sooner`: the median of ddp-adam over that of the "
        "method.",
        *parts,
        tables.setup([{**row, "threads_per_rank": row["threads"]} for row in used]),
    )


_OVERSUBSCRIBED = (
    "**Oversubscribed:** these hosts have more ranks than the machine has cores, so that compute "
    "takes longer than on hosts of their own."
)


def _shared(row: Row, hosts: int) -> bool:
    return bool(row["settings"]["hosts"] == hosts and row.get("oversubscribed"))


def _at_edge(settings: Row, method: Method, plan: Plan) -> bool:
    """Whether a tuned minibatch or rate is the least or the largest that was tried."""
    tuned = plan.method(method.like) if method.like else method
    pairs = ((settings["batch"], tuned.batches), (settings["lr"], tuned.learning_rates))
    return any(len(tried) > 1 and value in (min(tried), max(tried)) for value, tried in pairs)


_HEADER = [
    *("link", "method", "batch", "lr", "seconds", "sooner", "epochs", "messages", "MB"),
    *("s/epoch", "local steps"),
]


def _seconds(runs: Sequence[Row]) -> list[float]:
    return [row["seconds_to_target"] for row in runs if row["seconds_to_target"] is not None]


def _line(
    link: str,
    method: Method,
    runs: Sequence[Row],
    whole: Sequence[Row],
    base: Sequence[float],
    edge: bool,
) -> list[object]:
    settings, seconds = runs[0]["settings"], _seconds(runs)
    missed = len(runs) - len(seconds)
    shown = "-"
    if seconds:
        shown = f"{median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"
    steps = sorted({row["local_steps"] or 0 for row in whole})
    return [
        link,
        method.name,
        f"{settings['batch'] or whole[0]['rank_batch'] * settings['hosts']}{'*' * edge}",
        "-" if settings["lr"] is None else f"{settings['lr']:g}",
        shown + (f" ({missed} of {len(runs)} did not reach it)" if missed else ""),
        f"{median(base) / median(seconds):.1f}" if base and seconds else "-",
        *(_median(runs, key, form) for key, form in _MEDIANS),
        "-" if steps == [0] else ", ".join(map(str, steps)),
    ]


_MEDIANS = (
    ("epochs_to_target", "{:.2f}"),
    ("messages_to_target", "{:.0f}"),
    ("bytes_to_target", "{:.1f}"),
    ("seconds_per_epoch", "{:.2f}"),
)


def _median(runs: Sequence[Row], key: str, form: str) -> str:
    values = [row[key] for row in runs if row.get(key) is not None]
    scale = 1e-6 if key.startswith("bytes") else 1.0
    return form.format(scale * median(values)) if values else "-"
