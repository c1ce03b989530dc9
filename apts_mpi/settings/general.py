"""The settings of a run that are not the method's: data, network, length, ranks and files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from apts_mpi.networks.sizes import SIZES
from apts_mpi.settings import declaration as of
from apts_mpi.settings.declaration import APTS, Where, number, one_of, setting, whole

OWN_NETWORK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:function
ZOO_NETWORK = re.compile(r"(timm|torchvision):[A-Za-z0-9_]\w*(\.\w+)*")
_NETWORK = of.text(
    "NAME",
    f"{', '.join(SIZES)}, timm:NAME, torchvision:NAME, or your own: package.module:function, which "
    "has no .py in it (start where the file lies, or set PYTHONPATH)",
    lambda words: (
        words in SIZES or any(each.fullmatch(words) for each in (OWN_NETWORK, ZOO_NETWORK))
    ),
    *SIZES,
)
_free = partial(setting, free=True)


def _size(kind: of.Kind, name: str, text: str, usual: str) -> Any:
    """A size that some networks have."""
    where = Where(networks=tuple(each for each, sizes in SIZES.items() if name in sizes))
    return setting(None, kind, text, usual=usual, where=where)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on."""

    data: str = _free(
        "digits",
        of.FOLDER,
        "folder of shards, or 'digits': the embedded images, cut into shards on first use",
        shown="first",
    )
    context: int | None = setting(
        None,
        whole(1, 2**20),
        "tokens of a window, which is one sample of a text",
        usual="64",
        where=Where(tasks=("language",)),
    )
    augment: str | None = setting(
        None,
        of.CHANGES,
        "change training images at random: 'crop' pads by 4 pixels and takes a random window, "
        "'flip' mirrors left to right; names of torchvision.transforms.v2, with arguments in "
        "parentheses, change them one by one on the CPU",
    )
    stream: bool = setting(
        False,
        of.ON_OFF,
        "read samples from the shards shortly before they are needed, for data larger than memory; "
        "they are then shuffled within groups of neighbours",
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained, and how it is computed."""

    network: str = setting(
        "mlp",
        _NETWORK,
        "mlp, cnn, resnet (small images, GroupNorm), transformer (decoder only, for text), "
        "timm:NAME, torchvision:NAME, or your own: package.module:function (docs/networks.md)",
        shown="first",
    )
    network_args: str | None = setting(
        None,
        of.ARGUMENTS,
        "arguments of a network of timm, torchvision or your own, by name, like width=64,bias=off",
    )
    pretrained: bool = setting(
        False,
        of.ON_OFF,
        "start from the parameters that timm or torchvision have for the network, which are "
        "downloaded once; its last layer is new",
    )
    hidden: tuple[int, ...] | None = _size(
        of.WIDTHS, "hidden", "widths of the fully connected layers", "128,128 (mlp), 64 (cnn)"
    )
    channels: tuple[int, ...] | None = _size(
        of.WIDTHS, "channels", "channels of the convolutions", "16,32"
    )
    depth: int | None = _size(
        whole(1, 1000),
        "depth",
        "layers, 6n + 2 (resnet), or blocks (transformer)",
        "20 (resnet), 4 (transformer)",
    )
    width: int | None = _size(
        whole(1, 2**16),
        "width",
        "channels of the first stage (resnet), or of the residual stream (transformer)",
        "16 (resnet), 128 (transformer)",
    )
    heads: int | None = _size(whole(1, 1024), "heads", "attention heads", "4")
    normalization: str | None = _size(
        one_of("group", "batch", "none"), "normalization", "normalization of the layers", "group"
    )
    tied: bool | None = _size(
        of.ON_OFF, "tied", "use the token embedding as the output layer too", "off"
    )
    label_smoothing: float = setting(
        0.0,
        number(0, 1, ")"),
        "part of the target that is spread over all classes",
        where=Where(tasks=("classification", "language")),
    )
    class_weights: str | None = setting(
        None,
        of.WEIGHTS,
        "weights of the classes' losses, like 1,2,0.5; or 'balanced': every class the same sum",
        where=Where(tasks=("classification",)),
    )
    precision: str = setting(
        "fp32",
        one_of("fp32", "tf32", "bf16"),
        "of the network's products: fp32, tf32 (GPU) or bf16 (autocast); parameters, corrections "
        "and acceptance stay in fp32",
    )
    compile: bool = setting(False, of.ON_OFF, "compile the network with torch.compile")


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is, and what it reports."""

    epochs: float | None = _free(
        None,
        number(0, math.inf, "()"),
        "length of the run, in gradient evaluations per training sample (about one per pass over "
        "the data; five or more with sr1 and first-order); a forward evaluation counts 1/3",
        usual="10, or what makes 300,000 evaluations of few samples; 300 (sr1, first-order)",
        shown="first",
    )
    iterations: int | None = _free(None, whole(1, 2**40), "stop after this many outer iterations")
    max_seconds: float | None = _free(
        None, number(0, math.inf), "stop with a checkpoint (status 3) after X seconds"
    )
    seed: int = setting(
        0, whole(0, 2**62), "seed of the initial parameters and of the minibatches", shown="first"
    )
    evaluate_every: float | None = _free(
        None,
        number(0, math.inf),
        "evaluate test and validation samples after X sample gradients per training sample",
        usual="1, or as many as keep evaluation below a tenth of the work",
    )
    evaluate_samples: int | None = _free(
        None,
        whole(1, 2**40),
        "of each split evaluate only N samples, the same each time, evenly spaced",
        usual="all",
    )
    patience: int | None = _free(
        None,
        whole(1, 2**40),
        "end the run after N evaluations without a better result on the validation samples",
        usual="never",
    )


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How ranks compute, and what they send."""

    device: str = _free(
        "auto", one_of("auto", "cpu", "cuda"), "'auto': a GPU where there is one", shown="first"
    )
    threads: int | None = _free(
        None, whole(1, 4096), "threads per rank", usual="the host's cores / its ranks"
    )
    subdomains_per_rank: int = _free(
        1,
        whole(1, 1024),
        "subdomains per rank, whose corrections are computed one after another; each takes three "
        "vectors as long as the parameters",
        where=APTS,
        idle=True,
    )
    compress: str | None = setting(
        None,
        one_of("none", "bf16", "fp16", "int8", "int4"),
        "send corrections in 16, 8 or 4 bits per number, adding what that rounds off to the next "
        "one; where a host has several ranks, with --hierarchical on",
        usual="int8 of text on several ranks (spectral, scaled), else none",
        where=APTS,
        idle=True,
    )
    hierarchical: bool = _free(False, of.ON_OFF, "join within each host first, then between hosts")
    gpu_aware: bool = _free(
        False,
        of.ON_OFF,
        "send from GPU memory where the MPI library can, which is tried at the start; otherwise "
        "through host memory",
    )
    elastic: bool = _free(
        False,
        of.ON_OFF,
        "where ranks die or stand still the others go on without them; needs mpirun --with-ft ulfm "
        "of Open MPI 5 (docs/elastic.md)",
    )
    min_ranks: int = _free(
        1,
        whole(1, 2**12),
        "with --elastic: where fewer ranks are left, stop with a checkpoint (status 3)",
    )
    rank_timeout: float = _free(
        300.0,
        number(0, math.inf),
        "with --elastic: seconds after which a rank that the others wait for is taken for lost, "
        "and killed; 0: never",
    )
    stall_warning: float = _free(
        60.0,
        number(0, math.inf),
        "seconds after which waiting ranks report which rank has not arrived; 0: never",
    )
    stall_abort: float = _free(
        600.0, number(0, math.inf), "seconds after which they end the run; 0: never"
    )


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is written, and resumed from."""

    out: str | None = _free(
        None, of.FOLDER, "run directory", usual="a new one under runs/", shown="first"
    )
    checkpoint_every: str = _free(
        "600s",
        of.INTERVAL,
        "outer iterations (like 100) or seconds (like 600s) between checkpoints, and one at the "
        "end; 'off': only when stopped by a signal or --max-seconds",
        shown="first",
    )
    keep: int = _free(2, whole(1, 10**6), "checkpoints to keep")
    resume: str | None = _free(
        None,
        of.FOLDER,
        "resume from this checkpoint, or from the newest valid one of this run directory, on any "
        "number of ranks; 'auto': from that of --out, which is started if it has none",
        shown="first",
    )
    log: str | None = _free(
        None,
        of.LOGS,
        "write the metrics for these tools too: csv (metrics.csv in the run directory), "
        "tensorboard (in its folder tensorboard), wandb (offline without a key), mlflow (in its "
        "folder mlruns without MLFLOW_TRACKING_URI)",
    )
    verbose: bool = _free(False, of.ON_OFF, "close with the time of every phase, and the work")
    trace: str | None = _free(
        None,
        of.FILE,
        "write what every rank does, and when, to this new file: a Chrome trace (JSON)",
    )
