"""The ladder, masked epsilon-greedy proposals, and their number."""

import pytest
import torch

from agents.r2d2.exploration import LookaheadSchedule, actor_epsilons, annealed, ladder, propose


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


@pytest.mark.parametrize("count", [1, 3, 9])
def test_proposals_are_valid_and_different_and_as_many_as_there_are(count):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2000, 7, generator=generator)
    mask = torch.rand(2000, 7, generator=generator) < 0.3
    mask[:, 3] |= ~mask.any(dim=1)
    for epsilon in (0.0, 0.5, 1.0):
        for row, actions in enumerate(propose(q, mask, torch.full((2000,), epsilon), count, generator).tolist()):
            proposed = [action for action in actions if action >= 0]
            assert len(proposed) == min(count, int(mask[row].sum()))
            assert actions == [*proposed, *[-1] * (len(actions) - len(proposed))]
            assert len(set(proposed)) == len(proposed) and mask[row, proposed].all()


def test_proposals_without_exploration_are_the_best_in_order():
    q = torch.tensor([[0.5, -1.0, 2.0, 3.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0, 1]])
    assert propose(q, mask, torch.zeros(1), 3).tolist() == [[2, 0, 4]]
    assert propose(q, mask, torch.zeros(1), 9).tolist() == [[2, 0, 4, 1, -1]]


def test_each_proposal_is_drawn_with_chance_epsilon():
    """Of two proposals out of four, the second best is among them unless one is drawn and is another."""
    rows = 40_000
    q = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(rows, 4)
    generator = torch.Generator().manual_seed(3)
    proposals = propose(q, torch.ones(rows, 4), torch.full((rows,), 0.3), 2, generator)
    both, one, none = 0.7**2, 2 * 0.7 * 0.3, 0.3**2  # how many of them stay greedy
    best = (proposals == 0).any(1).float().mean()
    second = (proposals == 1).any(1).float().mean()
    assert float(best) == pytest.approx(both + one + none / 2, abs=0.01)
    assert float(second) == pytest.approx(both + one / 3 + none / 2, abs=0.01)


def test_the_number_of_proposals_follows_its_schedule():
    shrinking = LookaheadSchedule(k=2, k_start=6, anneal_steps=100)
    assert [shrinking.candidates(steps) for steps in (0, 50, 100, 1000)] == [6, 4, 2, 2]
    assert LookaheadSchedule(k=4, k_start=4).candidates(0) == 4


def test_random_actions_are_uniform_over_valid_ones_whatever_their_q():
    q = torch.zeros(30_000, 3)  # a Q of exactly 0 is valid
    mask = torch.tensor([1, 0, 1]).expand(30_000, 3)
    actions = propose(q, mask, torch.ones(30_000), 1, torch.Generator().manual_seed(1))[:, 0]
    assert torch.bincount(actions, minlength=3)[[0, 2]].div(30_000).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_each_row_has_its_own_rate_and_a_finished_episode_does_no_harm():
    q = torch.tensor([[0.0, 1.0]]).repeat(4000, 1)
    epsilons = torch.tensor([0.0, 1.0]).repeat(2000)
    mask = torch.ones(4000, 2)
    mask[-1] = 0  # no valid action at all
    actions = propose(q, mask, epsilons, 1, torch.Generator().manual_seed(2))[:, 0]
    assert actions[0::2].min() == 1
    assert 0.4 < actions[1::2].float().mean() < 0.6
