"""The README's example runs as printed, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import Launch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_trains_on_two_ranks(launch: Launch, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    short, program = (block for block in blocks if "StochasticAPTS" in block)
    assert len([line for line in short.splitlines() if line]) <= 5
    assert len([line for line in program.splitlines() if line]) <= 20
    (tmp_path / "example.py").write_text(program)
    done = launch(2, "example.py")
    assert done.status == 0, done.err
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.out)]
    assert len(losses) == 14
    assert losses[-1] < 0.5 * losses[0]


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^    make ([a-z]+)", README, flags=re.MULTILINE)
    assert {"run", "test"} <= set(commands)
    for target in commands:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_files_it_links_to_exist() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
