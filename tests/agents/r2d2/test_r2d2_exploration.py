"""The ladder and masked epsilon-greedy."""

import pytest
import torch

from agents.r2d2.exploration import actor_epsilons, annealed, epsilon_greedy, ladder


def test_ladder_is_ape_x():
    rungs = ladder(360)
    assert rungs[0] == 0.4
    assert rungs[-1] == pytest.approx(0.4**8)
    assert rungs[100] == pytest.approx(0.4 ** (1 + 7 * 100 / 359))
    assert ladder(1) == [0.4]


def test_runners_share_the_ladder_without_gap_or_overlap():
    parts = [actor_epsilons(index, 3, 2, base=0.4, exponent=7.0) for index in (1, 2, 3)]
    assert [rung for part in parts for rung in part] == ladder(6)
    assert actor_epsilons(0, 0, 4, base=0.4, exponent=7.0) == ladder(4)


def test_annealing_falls_from_one_to_the_rungs():
    rungs = torch.tensor([0.4, 0.1])
    assert annealed(rungs, 0, 100).tolist() == [1.0, 1.0]
    assert annealed(rungs, 50, 100).tolist() == pytest.approx([0.7, 0.55])
    assert torch.equal(annealed(rungs, 1000, 100), rungs)
    assert torch.equal(annealed(rungs, 0, 0), rungs)


def test_no_invalid_action_is_ever_drawn():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2000, 7, generator=generator)
    mask = torch.rand(2000, 7, generator=generator) < 0.3
    mask[:, 3] |= ~mask.any(dim=1)
    for epsilon in (0.0, 0.5, 1.0):
        actions = epsilon_greedy(q, mask, torch.full((2000,), epsilon), generator)
        assert mask[torch.arange(2000), actions].all()


def test_random_actions_are_uniform_over_valid_ones_whatever_their_q():
    q = torch.zeros(30_000, 3)  # a Q of exactly 0 is valid
    mask = torch.tensor([1, 0, 1]).expand(30_000, 3)
    actions = epsilon_greedy(q, mask, torch.ones(30_000), torch.Generator().manual_seed(1))
    assert torch.bincount(actions, minlength=3)[[0, 2]].div(30_000).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_each_row_has_its_own_rate_and_a_finished_episode_does_no_harm():
    q = torch.tensor([[0.0, 1.0]]).repeat(4000, 1)
    epsilons = torch.tensor([0.0, 1.0]).repeat(2000)
    mask = torch.ones(4000, 2)
    mask[-1] = 0  # no valid action at all
    actions = epsilon_greedy(q, mask, epsilons, torch.Generator().manual_seed(2))
    assert actions[0::2].min() == 1
    assert 0.4 < actions[1::2].float().mean() < 0.6
