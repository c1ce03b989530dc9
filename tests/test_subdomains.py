"""Several subdomains a rank: the run that as many ranks would have made."""

from __future__ import annotations

from pathlib import Path

from conftest import TESTS, Launch

PROGRAM = TESTS / "subdomain_programs.py"


def test_the_same_subdomains_on_other_numbers_of_ranks(launch: Launch) -> None:
    names = ("the_same_subdomains_on_fewer_ranks", "two_on_one_rank_are_two_ranks")
    done = launch(4, PROGRAM, *names, timeout=240)
    assert done.status == 0, done.err
    for name in names:
        assert done.out.count(f"done {name}") == 4


def test_a_run_goes_on_with_its_subdomains_on_other_ranks(launch: Launch, tmp_path: Path) -> None:
    flags = ("--hidden", "8", "--threads", "1", "--checkpoint-every", "2")
    many = ("--subdomains-per-rank", "4", "--iterations", "4", "--out", "run")
    assert launch(0, "-m", "apts_mpi", *flags, *many).status == 0
    going = ("--resume", "run", "--iterations", "6", "--out", "on")
    done = launch(2, "-m", "apts_mpi", *going, "--subdomains-per-rank", "2")
    assert done.status == 0, done.err
    assert "on 2 ranks of 2 subdomains, not 1 ranks of 4 subdomains" in done.err
    assert len((tmp_path / "on" / "metrics.jsonl").read_text().splitlines()) == 6
    refused = launch(0, "-m", "apts_mpi", "--optimizer", "adam", "--subdomains-per-rank", "2")
    assert refused.status == 2
    assert "adam has no subdomains" in refused.told[0]
