"""``python -m benchmarks``: a command that is not known."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize(
    ("command", "word"),
    [("stron", "did you mean strong?"), ("bogus", "commands are checkpoint, compare")],
)
def test_an_unknown_command_is_refused_with_what_is_meant(
    command: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"benchmarks: {command}: no such command")
    assert word in line
    assert line.count("\n") == 1
