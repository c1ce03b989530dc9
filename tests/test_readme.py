"""The README: its example runs as printed, its commands exist, its figures were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.quality.compare.overview import DOCS, Entry, described, entries, megabytes
from tests.conftest import Launch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_example_trains_on_two_ranks(launch: Launch, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 12
    (tmp_path / "example.py").write_text(program)
    done = launch(2, "example.py")
    assert done.status == 0, done.err
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.out)]
    assert len(losses) == 2
    assert max(losses) < 0.5  # 0.69 without training


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^    make ([a-z-]+)", README, flags=re.MULTILINE)
    assert {"run", "test"} <= set(commands)
    for target in commands:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_the_figure_shows_what_was_measured(ground: str) -> None:
    """Draw it anew: python -m benchmarks.quality.compare.overview."""
    drawing = (DOCS / f"overview-{ground}.svg").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<desc>\n(.*?)\n</desc>", drawing, flags=re.DOTALL)
    assert shown.splitlines() == list(described())


def test_what_it_says_of_the_peers_was_measured() -> None:
    text, resnet = entries("beyond", "transformer"), entries("beyond", "resnet")
    mnist, digits = entries("compare", "mnist"), entries("compare", "digits")
    (said,) = re.findall(r"reaches (\S+)\s+nats against (\S+) on", README)
    assert said == (f"{text['muon'].mean:.3f}", f"{text['apts'].mean:.3f}")
    for name, of in (("the ResNet", resnet), ("the digits", digits)):
        (said,) = re.findall(rf"(\S+) against (\S+) % on\s+{name}", README)
        assert said == (f"{of['muon'].mean:.1f}", f"{of['apts'].mean:.1f}")

    def beaten(of: dict[str, Entry]) -> set[str]:
        return {name for name, entry in of.items() if entry.score < of["apts"].score}

    assert beaten(text) >= {"adam", "adamw", "schedule-free", "sgd", "diloco-cosine", "muloco"}
    assert beaten(resnet) >= {"adam", "adamw", "sgd", "sgd-cosine", "diloco-cosine", "muloco"}
    assert beaten(mnist) >= {"adam", "adamw", "schedule-free", "sgd"}
    for of in (text, resnet):
        for local in ("diloco-cosine", "muloco"):
            assert megabytes(of[local]) >= megabytes(of["apts"])
    for of, least in ((text, 19.5), (resnet, 10), (mnist, 20)):
        assert megabytes(of["adam"]) / megabytes(of["apts"]) >= least
