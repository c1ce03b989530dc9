"""Names that other tools have for settings, and what there is here instead."""

from __future__ import annotations

from collections.abc import Iterable

from apts_mpi.errors import did_you_mean

_INSTEAD = {
    ("batch-size", "bs", "b", "micro-batch-size", "per-device-train-batch-size", "minibatch"): (
        "use --batch: samples of one subdomain's minibatch, so per rank, not over all ranks"
    ),
    ("learning-rate", "learningrate", "base-lr"): (
        "use --lr with a baseline (--optimizer adam, sgd, muon, ...); apts has none"
    ),
    ("lr-scheduler", "scheduler", "lr-scheduler-type", "lr-decay", "gamma", "step-size"): (
        "use --schedule with a baseline; apts has none, its radius adapts itself"
    ),
    ("warmup-steps", "warmup-ratio", "warmup-epochs", "warmup-iters"): (
        "use --warmup, percent of --epochs, with a baseline"
    ),
    ("wd", "decay", "l2"): "use --weight-decay",
    ("num-epochs", "n-epochs", "max-epochs", "num-train-epochs", "e"): "use --epochs",
    ("steps", "max-steps", "num-steps", "max-iter", "max-iters", "iters"): (
        "use --iterations (outer ones), or --epochs"
    ),
    ("amp", "fp16", "bf16", "half", "mixed-precision", "autocast", "dtype", "tf32"): (
        "use --precision bf16 or tf32 for the network's products, --compress for messages"
    ),
    (
        "int8",
        "int4",
        "quantize",
        "quantization",
        "compression",
        "grad-compression",
        "fp16-allreduce",
    ): ("use --compress bf16, fp16, int8 or int4: bits per number in messages"),
    ("gpus", "gpu", "num-gpus", "n-gpus", "ngpu", "cuda", "no-cuda", "use-cuda"): (
        "use --device cuda or cpu; a rank trains on one GPU, so start as many: mpirun -n GPUS"
    ),
    ("nproc", "nproc-per-node", "np", "n", "nnodes", "num-nodes", "world-size", "ranks"): (
        "ranks are the launcher's: mpirun -n RANKS python -m apts_mpi"
    ),
    ("workers", "num-workers", "j", "num-threads"): (
        "there are no workers that load data: --threads sets threads per rank, --stream reads ahead"
    ),
    ("model", "arch", "architecture", "a"): "use --network",
    ("layers", "num-layers", "n-layers", "hidden-size", "hidden-sizes", "hidden-dim"): (
        "use --hidden 128,128 (mlp, cnn), or --depth and --width (resnet, transformer)"
    ),
    ("dropout",): "a network of your own may have it (docs/networks.md)",
    ("dataset", "data-dir", "data-path", "train-data"): "use --data",
    ("output-dir", "output", "save-dir", "log-dir", "logdir", "o"): "use --out",
    ("checkpoint", "ckpt", "load", "resume-from", "resume-from-checkpoint"): "use --resume",
    ("logger", "report-to", "tensorboard", "wandb", "mlflow", "loggers"): (
        "use --log csv,tensorboard,wandb,mlflow"
    ),
    ("early-stopping", "early-stop", "early-stopping-patience"): "use --patience",
    ("eval-every", "eval-steps", "eval-interval", "validate-every", "val-check-interval"): (
        "use --evaluate-every"
    ),
    ("save-every", "save-interval", "save-steps", "save-freq"): "use --checkpoint-every",
    ("random-seed", "manual-seed"): "use --seed",
    ("cfg", "config-file", "c"): "use --config",
}
_BY_NAME = {name: instead for names, instead in _INSTEAD.items() for name in names}


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a line about an unknown setting: what is probably meant; empty if nothing is.

    Args:
        name: with or without dashes before it. known: all there are, written as it is.
    """
    word = name.lstrip("-").replace("_", "-").lower()
    return f"; {_BY_NAME[word]}" if word in _BY_NAME else did_you_mean(name, known)
