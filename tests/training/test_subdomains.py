"""Several subdomains a rank: the run that as many ranks would have made."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import TESTS, Launch
from tests.method.driving import Stochastic

PROGRAM = TESTS / "training/subdomain_programs.py"


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
    assert "has no effect with --optimizer adam" in refused.told[0]


def test_the_joined_correction_is_every_subdomains_first_moment() -> None:
    """Against the gradients themselves: a constant gradient each, so that m is their mean."""
    slopes = (torch.tensor([1.0, -3.0]), torch.tensor([5.0, -1.0]))
    x = torch.nn.Parameter(torch.zeros(2))
    moments = {}
    for shared in (True, False):
        optimizer = Stochastic([x], local_steps=4, subdomains=2, shared=shared, radius=1e-3)
        draws = [lambda slope=slope: ((lambda: x @ slope + 9.0), 10) for slope in slopes]
        optimizer.step(*draws)
        state = optimizer.state_dict()["subdomains"]
        moments[shared] = [state[str(k)]["local"]["m"] for k in range(2)]
    grown = 1.0 - 0.9**4  # of a moment of equal gradients that began at zero
    for own, slope in zip(moments[False], slopes, strict=True):
        assert torch.allclose(own, grown * slope, rtol=1e-4)
    # A step is -r sign(g) here, so that the mean displacement times D = |g| is the mean sign times
    # that subdomain's own scale.
    for own, slope in zip(moments[True], slopes, strict=True):
        signs = (slopes[0].sign() + slopes[1].sign()) / 2
        assert torch.allclose(own, grown * signs * slope.abs(), rtol=1e-3), (own, slope)


def test_what_is_shared_needs_others() -> None:
    x = torch.nn.Parameter(torch.zeros(2))
    assert not Stochastic([x]).shared
    assert Stochastic([x], subdomains=2).shared
