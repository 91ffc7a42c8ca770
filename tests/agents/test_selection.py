"""The choice of the final mask."""

import numpy as np
import pytest

from agents.selection import candidates, choose, mask_of, nominate, restore
from envs.actions import Action, Stop
from envs.episodes import Episode, play
from envs.objectives import Budget
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError
from recognizers.recovery import FinetuneRecovery


def random_episodes(env: PruningEnv, count: int) -> list[Episode]:
    generator = np.random.default_rng(0)

    def act(observation: object, info: dict) -> int:
        return int(generator.choice(np.flatnonzero(info["action_mask"])))

    return [play(env, act, seed=seed, policy="random") for seed in range(count)]


def test_candidates_are_the_states_within_tolerance(env: PruningEnv) -> None:
    for episode in random_episodes(env, 5):
        found = candidates(env, episode)
        floor = env.baseline_accuracy - env.objective.drop  # type: ignore[attr-defined]
        within = [0, *(step for step, accuracy in enumerate(episode.accuracies, 1) if accuracy >= floor - 1e-9)]
        assert [candidate.steps for candidate in found] == within


def test_nominations_come_best_first_and_once_per_mask(env: PruningEnv) -> None:
    episodes = random_episodes(env, 6)
    nominated = list(nominate(env, [*episodes, *episodes]))
    scores = [candidate.score for candidate in nominated]
    assert scores == sorted(scores, reverse=True)
    masks = {mask_of(env, candidate).tobytes() for candidate in nominated}
    assert len(masks) == len(nominated)


def test_mask_of_a_candidate_is_the_mask_its_actions_lead_to(env: PruningEnv) -> None:
    episode = random_episodes(env, 1)[0]
    env.reset(seed=episode.seed)
    for step, action in enumerate(episode.actions, 1):
        env.step(action)
        candidate = [c for c in candidates(env, episode) if c.steps == step]
        if candidate:
            np.testing.assert_array_equal(mask_of(env, candidate[0]), env.recognizer.mask)


def test_choice_is_the_largest_reduction_within_tolerance_on_both_splits(env: PruningEnv) -> None:
    episodes = random_episodes(env, 8)
    choice = choose(env, episodes)
    assert env.recognizer.accuracy("selection") == choice.selection_accuracy
    floor = env.recognizer.baseline_accuracy("selection") - env.objective.drop  # type: ignore[attr-defined]
    best = 0.0
    for candidate in nominate(env, episodes):  # all of them, by brute force
        restore(env, candidate)
        if env.recognizer.accuracy("selection") >= floor - 1e-9:
            best = max(best, candidate.measurement.parameter_reduction)
    assert choice.candidate.measurement.parameter_reduction == pytest.approx(best)


def test_choice_under_a_budget_goes_by_the_selection_split(task: TaskConfig) -> None:
    env = PruningEnv(task.model_copy(update={"objective": Budget(parameters=0.5)}))
    episodes = random_episodes(env, 6)
    choice = choose(env, episodes)
    measured = []
    for episode in episodes:
        restore(env, candidates(env, episode)[-1])
        measured.append(env.recognizer.accuracy("selection"))
    assert choice.selection_accuracy == max(measured)
    assert choice.candidate.measurement.parameter_reduction >= 0.5


def test_restoring_after_finetuning_replays_the_path(task: TaskConfig) -> None:
    env = PruningEnv(task.model_copy(update={"recovery": FinetuneRecovery(steps=1, batch_size=32, images=64)}))
    episode = random_episodes(env, 1)[0]
    candidate = candidates(env, episode)[-1]
    restore(env, candidate)
    assert env.recognizer.accuracy("reward") == pytest.approx(candidate.measurement.accuracy, abs=1e-9)


def test_an_unmet_objective_is_said(task: TaskConfig) -> None:
    env = PruningEnv(task.model_copy(update={"objective": Budget(parameters=0.5)}))
    decisions: list[Action | Stop] = [0, Stop.STOP]
    cut_short = play(env, lambda *_: decisions.pop(0), seed=0, policy="x")
    with pytest.raises(ConfigurationError, match="no episode met the objective"):
        choose(env, [cut_short])
