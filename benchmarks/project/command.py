"""A cost model, proved on what was measured, then beyond this machine.

Reads rows of strong, weak, micro and network; its parameters come from runs on one rank and from
micro. First it predicts the configurations of more than one rank that were measured, every one of
them shown; then it projects to the ranks, sizes and networks of project.toml. Writes project.jsonl,
project.md and project_*.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.results import Results
from benchmarks.project import figures as project_figures
from benchmarks.project import report as project_report
from benchmarks.project.fit import fits_of
from benchmarks.project.grid import MEASURED, Projection, project
from benchmarks.project.plan import read_plan
from benchmarks.project.predict import Prediction, predict
from benchmarks.project.rows import network, read, scaling

CONFIG = ROOT / "benchmarks" / "project.toml"
NEEDED, WELCOME = ("strong", "weak", "micro"), ("network",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS",
        help="JSON lines of strong, weak, micro, network (default those of the folder of --out)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="TOML of ranks, sizes, networks, methods (default benchmarks/project.toml)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Predict and project; returns the exit status.

    Raises:
        InputError: results or the configuration cannot be used.
    """
    figures.pyplot()
    plan, out = read_plan(parsed.config), Path(parsed.out)
    paths = list(parsed.results) or _of(out)
    rows = read(paths)
    measured, fits = scaling(rows), fits_of(rows)
    if not fits:
        raise InputError("no Allreduce over two ranks or more among the rows: run micro first")
    predictions, left = predict(measured, network(rows), fits)
    projections = project(plan, [m for m in measured if m.ranks == 1])
    write(out / "project.jsonl", predictions, projections)
    project_figures.measured(out / "project_measured.png", predictions)
    drawn = project_figures.projected(out, projections)
    behind = [row for row in rows if row["settings"]["benchmark"] in (*NEEDED, *WELCOME)]
    project_report.report(
        out / "project.md", plan, measured, fits, predictions, left, projections, behind, drawn
    )
    return 0


def _of(out: Path) -> list[Path]:
    """The files of a folder; network's, which needs root, may be missing.

    Raises:
        InputError: another one is.
    """
    paths = [out / f"{name}.jsonl" for name in (*NEEDED, *WELCOME)]
    if not paths[-1].exists():
        print(f"{paths[-1]}: not there; networks are not among the predictions", flush=True)
        paths.pop()
    return paths


def write(path: Path, predictions: list[Prediction], projections: list[Projection]) -> None:
    """The rows of ``project.jsonl``, anew.

    An accelerator is named with the network too, so that its rows differ by that alone.
    """
    results = Results(path, fresh=True)
    base = {"benchmark": "project"}
    for one in predictions:
        parts = {name: _short(value) for name, value in vars(one.parts).items()}
        values = {
            **{"measured": _short(one.measured), "predicted": _short(one.parts.total)},
            **{"predicted_alone": _short(one.alone), "parts": parts, "source": one.source},
        }
        results.add({**base, "kind": "prediction", "of": one.of.of}, values)
    for line in projections:
        network = line.network if line.compute == MEASURED else f"{line.network}, {line.compute}"
        for ranks, seconds in line.epoch.items():
            settings = {
                **{**base, "kind": "projection", "method": line.method},
                **{"parameters": line.parameters, "network": network},
                **{"compute": line.compute, "ranks": ranks},
            }
            values = {
                "seconds_per_epoch": _short(seconds),
                "efficiency": _short(line.efficiency[ranks]),
            }
            results.add(settings, values)
    print(f"written: {path}")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
