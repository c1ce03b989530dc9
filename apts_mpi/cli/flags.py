"""The flags of the commands, and what a misspelt one is probably meant to be."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from apts_mpi.errors import InputError, did_you_mean, either
from apts_mpi.settings.config import SETTINGS
from apts_mpi.settings.declaration import ON_OFF
from apts_mpi.settings.habits import meant

_NUMBER = re.compile(r"-[\d.]")  # a value below 0, no flag
COMMANDS = ("train", "shard", "inspect", "evaluate", "predict", "plot", "export")
PROGRAM = "python -m apts_mpi"
EPILOG = """\
commands:
  train (the default)   train a network
  shard SOURCE          cut a data set into HDF5 shards
  inspect PATH          describe and verify a shard directory or a checkpoint
  evaluate CHECKPOINT   loss, accuracy and figures by class on a shard directory
  predict CHECKPOINT DATA   predictions for a shard directory or a file of arrays
  plot RUN...           learning curves, radius, ratio and bytes of runs, as a picture or a page
  export CHECKPOINT     the network as a plain state_dict (safetensors, or torch's)
  COMMAND --help        the command's own flags
  --help-all            all flags of train, which are the settings of its TOML file too

examples:
  mpirun -n 8 python -m apts_mpi
  python -m apts_mpi shard mnist --from DIR --out mnist-8 --shards 8
  mpirun -n 8 python -m apts_mpi train --data mnist-8 --epochs 100 --out run
  mpirun -n 4 python -m apts_mpi train --resume run
  python -m apts_mpi export run --out network.safetensors

exit status: 0 done, 2 bad usage or bad input, 3 stopped by a signal or --max-seconds with a
checkpoint, 1 anything else; the same on every rank
"""


class Parser(argparse.ArgumentParser):
    """A command's; raises instead of printing, so that one rank speaks for all.

    Args:
        command: its name. options: those of ``ArgumentParser``.
    """

    def __init__(self, command: str, **options: Any) -> None:
        shown = "[train]" if command == "train" else command
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(
            f"{PROGRAM} {shown}",
            formatter_class=form,
            add_help=False,
            allow_abbrev=False,
            **options,
        )
        self._command = command
        self.add_argument("-h", "--help", action="store_true", help="this text")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The values of the command's arguments.

        Raises:
            InputError: bad usage.
        """
        known = {flag for action in self._actions for flag in action.option_strings}
        for argument in arguments:
            flag = argument.split("=")[0]
            if argument == "--":
                break
            if flag.startswith("-") and flag != "-" and flag not in known and " " not in argument:
                if _NUMBER.match(flag):
                    continue
                names = sorted(each for each in known if each.startswith("--"))
                train = self._command == "train"
                self.error(f"{flag}: no such flag{(meant if train else did_you_mean)(flag, names)}")
        return self.parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        """A usage error."""
        see = "--help-all" if self._command == "train" else f"{self._command} --help"
        raise InputError(f"{message.removeprefix('argument ')} (see {PROGRAM} {see})")


def one_of(flag: str, words: Sequence[str]) -> dict[str, Any]:
    """Options of an argument that is one of some words."""

    def read(text: str) -> str:
        if text not in words:
            why = f"must be {either(words)}{did_you_mean(text, words)}"
            raise InputError(f"{flag} {text}: {why}")
        return text

    return {"type": read, "metavar": "|".join(words) if flag.startswith("-") else flag.upper()}


def switch(text: str) -> bool:
    """The value of an argument that is on or off."""
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


def train_parser(*, everything: bool = False) -> Parser:
    """Of ``train``; ``everything``: its help shows all settings, not only those needed first."""
    parser = Parser(
        "train",
        usage=f"mpirun -n RANKS {PROGRAM} [train] [--FLAG VALUE ...]",
        description="Data-parallel training by APTS, a nonlinearly preconditioned trust-region\n"
        "method. Run under mpirun or srun, one subdomain per rank; no learning rate to set.",
        epilog=_hidden() if everything else EPILOG,
    )
    parser.add_argument("--help-all", action="store_true", help="every flag, and where it is used")
    parser.add_argument("--version", action="store_true", help="print the version")
    groups = {each.group: parser.add_argument_group(each.group) for each in SETTINGS.values()}
    groups["files"].add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of settings; flags override it"
    )
    for each in SETTINGS.values():
        shown = each.shown == "first" or (everything and each.shown == "all")
        text = each.described().replace("%", "%%") if shown else argparse.SUPPRESS
        alone: dict[str, Any] = {"nargs": "?", "const": True} if each.kind is ON_OFF else {}
        groups[each.group].add_argument(
            each.flag, type=each.read, metavar=each.kind.metavar, help=text, **alone
        )
    return parser


def _hidden() -> str:
    """Which settings the help of all leaves out."""
    rest = ", ".join(name for name, each in SETTINGS.items() if each.shown == "never")
    return f"""\
Seldom needed, settings of the acceptance rule, for --config or as flags:
{rest} (docs/method.md)
"""


def inspect_parser() -> Parser:
    """The flags of ``inspect``."""
    parser = Parser("inspect", description="Describe and verify a shard directory or a checkpoint.")
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="shard directory; a checkpoint's folder; or a run directory, for its newest valid one",
    )
    _add_network(parser)
    return parser


def evaluate_parser() -> Parser:
    """The flags of ``evaluate``."""
    from apts_mpi.data.sources.splits import SPLITS  # which reads HDF5

    parser = Parser(
        "evaluate", description="Loss and accuracy of a checkpoint's network; also under mpirun."
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="DIR", help="shard directory (default: the one it was trained on)"
    )
    parser.add_argument(
        "--split", **one_of("--split", SPLITS), default="test", help="(default test)"
    )
    _add_device(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the figures to this file too, as JSON"
    )
    return parser


def predict_parser() -> Parser:
    """The flags of ``predict``."""
    from apts_mpi.data.sources.splits import SPLITS  # which reads HDF5

    parser = Parser(
        "predict",
        description="Write what a checkpoint's network predicts: classes with the probability of "
        "each, or numbers in the units of the targets.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="shard directory; or a .npz, .npy, .h5 or .mat file with samples (array x) in the "
        "units of the arrays that the training shards were cut from",
    )
    parser.add_argument(
        "--split",
        **one_of("--split", SPLITS),
        default="test",
        help="of a shard directory (default test)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write: .csv, or .h5"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    _add_device(parser)
    return parser


def plot_parser() -> Parser:
    """The flags of ``plot``."""
    parser = Parser(
        "plot",
        description="Draw loss, accuracy, radius, reduction ratio and bytes of runs side by side; "
        "needs matplotlib.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write: .png, .svg or .pdf, or .html, one page with figures and table "
        "(default plot.png, in the run's directory where it is one)",
    )
    parser.add_argument(
        "--x",
        **one_of("--x", ("epoch", "work", "iteration", "seconds", "bytes")),
        default="epoch",
        help="horizontal axis: passes over the data, sample gradients per training sample, outer "
        "iterations, seconds, or megabytes sent per rank (default epoch)",
    )
    return parser


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        **one_of("--device", ("auto", "cpu", "cuda")),
        default="auto",
        help="'auto': a GPU where there is one (default auto)",
    )


def export_parser() -> Parser:
    """The flags of ``export``."""
    parser = Parser(
        "export",
        description="Write a checkpoint's network, of APTS the average of its iterates, as a plain "
        "state_dict; what it takes is in the metadata of a safetensors file.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .safetensors; or .pt, .pth for torch.load(FILE, weights_only=True)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def _add_checkpoint(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint's folder, or a run directory, for its newest valid one",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="of a run directory the checkpoint that was best on the validation samples",
    )
    _add_network(parser)


def _add_network(parser: Parser) -> None:
    parser.add_argument(
        "--network",
        metavar="TEXT",
        help="the checkpoint's network, where it is your own: package.module:function, whose code "
        "is run",
    )


PARSERS = {
    "inspect": inspect_parser,
    "evaluate": evaluate_parser,
    "predict": predict_parser,
    "plot": plot_parser,
    "export": export_parser,
}
