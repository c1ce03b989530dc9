"""Texts, settings and metrics, with strange lines in them."""

from __future__ import annotations

from pathlib import Path

from .damage import Rng

_TOML = (
    "seed = " + "9" * 5000, "epochs = " + "9" * 400, "epochs = 1e999", "epochs = nan", "seed = -1",
    "seed = 0x" + "f" * 5000, "epochs = inf", "epochs = -inf", "radius = nan", "batch = 1e3",
    "hidden = " + "[" * 20_000, "hidden = " + "[" * 500 + "]" * 500, "hidden = [1, '2']",
    "hidden = []", "hidden = [" + "1," * 50_000 + "]", "hidden = 5", "hidden = [true]",
    "device = \"a\\nb\"", "optimizer = \"\\u0000\"", "data = \"\\u0000\"", "out = \"\\u0000\"",
    "data = \"\\ud800\"", "out = \"a\\nb\"", "network = 'mlp\x7f'", "'a\\nb' = 1", "\"a\\nb\" = 1",
    "a.b.c = 1", "[train]\nseed = 1", "seed = 2001-01-01", "seed = 2001-13-45", "seed = 25:61:61",
    "seed = true", "consistency = 1", "lr = true", "seed = \"1\"", "checkpoint_every = \"\"",
    "checkpoint_every = \"\u0661s\"", "checkpoint_every = \"9999999999s\"", "checkpoint_every = 5",
    "resume = \"auto\"\nout = \"\"", "local_steps = \"auto\"", "local_steps = \"-1\"",
    "local_steps = -1", "x = {" + "a = {" * 3000, "\ufeff", "x = '''" + "y" * 10**6,
    "#" * 2_000_000, "".join(f"k{k} = 1\n" for k in range(5000)), ".".join(["a"] * 5000) + " = 1",
    "data = \"" + "/x" * 10_000 + "\"", "averaging = nan", "momentum = nan", "shrink_below = -inf",
)  # fmt: skip

# Sound settings of other runs; what they ask for must not be done on a forger's word.
_OTHERS = (
    "hidden = [1048576, 1048576]", "hidden = [1048576]", "hidden = [16, 1048576, 1048576, 16]",
    "hidden = [" + "1048576," * 300 + "]", "hidden = [" + "1," * 50_000 + "]", "hidden = [7]",
    "hidden = [6, 6]", "hidden = []", "network = 'cnn'", "optimizer = 'adam'", "optimizer = 'sgd'",
    "optimizer = 'apts'", "optimizer = 'diloco'", "local_solver = 'sr1'", "memory = 10",
    "local_solver = 'first-order'", "batch = 1", "batch = 1099511627776", "local_steps = 1000",
    "local_steps = 'auto'", "window = 1000", "overlap = 100", "radius = 1e-8", "radius = 1e3",
    "data = '/dev/zero'", "data = '.'", "data = 'nowhere'", "data = '/'", "device = 'cuda'",
    "out = '/nowhere/else'", "resume = 'nowhere'", "trace = '/nowhere/trace.json'", "threads = 2",
    "max_seconds = 0.0", "iterations = 1", "epochs = 1e-300", "epochs = 1e300", "keep = 1000000",
    "seed = 4611686018427387904", "evaluate_every = 0", "stall_abort = 1e-9", "averaging = inf",
    "averaging = 0", "lr = 1e300", "lr = 1e-300", "lr = 0.1", "grow = 10", "smoothing = 0",
    "checkpoint_every = 'off'", "checkpoint_every = 1", "join = 'sum'", "global_step = false",
    "momentum = 0", "norm = 'inf'", "consistency = false",
)  # fmt: skip


def _with_line(rng: Rng, text: str, lines: tuple[str, ...]) -> str:
    """Settings with one of the lines in place of the one that sets the same."""
    line = lines[rng.integers(len(lines))]
    name = line.split(" ")[0]
    kept = [each for each in text.splitlines() if not each.startswith(f"{name} =")]
    kept.insert(int(rng.integers(len(kept) + 1)) if not line.startswith("[") else len(kept), line)
    return "\n".join(kept) + "\n"


def toml(rng: Rng, path: Path) -> None:
    """A line of settings replaced or added by a strange one."""
    text = path.read_text(encoding="utf-8")
    path.write_text(_with_line(rng, text, _TOML), encoding="utf-8", errors="surrogatepass")


def strange_settings(rng: Rng, text: str) -> str:
    """Settings with one that is gone, strange, or of another run."""
    rows = text.splitlines(keepends=True)
    if rows and rng.random() < 0.15:
        del rows[rng.integers(len(rows))]
        return "".join(rows)
    return _with_line(rng, text, _OTHERS if rng.random() < 0.7 else _TOML)


def lines(rng: Rng, path: Path) -> None:
    """Lines of a text in disorder, twice, gone, joined, or replaced."""
    rows = path.read_bytes().splitlines(keepends=True) or [b"\n"]
    k, j = (int(rng.integers(len(rows))) for _ in range(2))
    strange = (
        b"\n", b"null\n", b"[]\n", b"{}\n", b'{"iteration": ' + b"9" * 5000 + b"}\n", b"\xff\n",
        b'{"iteration": true}\n', b'{"iteration": 1.0}\n', b"[" * 100_000 + b"\n", b"\x00" * 512,
        b'{"iteration": 2, "iteration": 1}\n', b'{"iteration": NaN}\n', b"x" * 2_000_000 + b"\n",
        b'{"iteration": 1, "x": "\\ud800"}\n',
    )  # fmt: skip
    kind = int(rng.integers(6))
    if kind == 0:
        rows[k], rows[j] = rows[j], rows[k]
    elif kind == 1:
        rows.insert(k, rows[j])
    elif kind == 2:
        del rows[k]
    elif kind == 3:
        rows[k] = rows[k].rstrip(b"\n")
    elif kind == 4:
        rows[k] = strange[rng.integers(len(strange))]
    else:
        rows.insert(k, strange[rng.integers(len(strange))])
    path.write_bytes(b"".join(rows))


def numbers(rng: Rng, path: Path) -> None:
    """One digit of a text replaced by another sign."""
    bad = bytearray(path.read_bytes())
    places = [k for k, sign in enumerate(bad) if 48 <= sign < 58]
    if places:
        bad[places[rng.integers(len(places))]] = b"0123456789-.e "[rng.integers(14)]
    path.write_bytes(bytes(bad))
