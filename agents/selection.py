"""Choosing the final mask among those that a policy visited.

Every search overfits the images whose accuracy it maximises. So the reward split only nominates candidates, and the
selection split, which no policy sees, chooses among them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from envs.episodes import Episode, replay
from envs.objectives import Measurement
from envs.pruning import PruningEnv
from recognizers.errors import ConfigurationError

NOMINATIONS = 32
"""How many candidates, best first, are measured on the selection split at least."""


@dataclass(frozen=True)
class Candidate:
    """A state that an episode passed through.

    Attributes:
        episode: the episode.
        steps: how many of its actions lead to the state.
        measurement: on the reward split, as recorded.
        score: of the objective.
    """

    episode: Episode
    steps: int
    measurement: Measurement
    score: float


@dataclass(frozen=True)
class Choice:
    """The chosen candidate and its accuracy on the selection split."""

    candidate: Candidate
    selection_accuracy: float


def candidates(env: PruningEnv, episode: Episode) -> list[Candidate]:
    """The states of an episode, the complete network included, that meet the objective on the reward split."""
    states = [Measurement.complete(env.baseline_accuracy), *episode.states]
    scores = [env.objective.score(state, env.baseline_accuracy) for state in states]
    return [
        Candidate(episode, steps, state, score)
        for steps, (state, score) in enumerate(zip(states, scores, strict=True))
        if score > -np.inf
    ]


def nominate(env: PruningEnv, episodes: Iterable[Episode]) -> Iterator[Candidate]:
    """The candidates of all episodes, best first; one for each mask, where the recovery does not depend on the path."""
    ranked = sorted(
        (candidate for episode in episodes for candidate in candidates(env, episode)),
        key=lambda candidate: candidate.score,
        reverse=True,
    )
    seen: set[bytes] = set()
    for candidate in ranked:
        if env.recognizer.recovery.memoryless:
            key = mask_of(env, candidate).tobytes()
            if key in seen:
                continue
            seen.add(key)
        yield candidate


def mask_of(env: PruningEnv, candidate: Candidate) -> np.ndarray:
    """The mask of a candidate, ``[U]`` int8, without measuring anything."""
    mask = np.ones(env.recognizer.n_units, dtype=np.int8)
    for action in candidate.episode.actions[: candidate.steps]:
        mask[env.units_of(env.actions.recall(action), mask)] = 0
    return mask


def restore(env: PruningEnv, candidate: Candidate) -> None:
    """Bring the recognizer into a candidate's state, weights as recovered."""
    if env.recognizer.recovery.memoryless:
        env.recognizer.load_mask(mask_of(env, candidate))
    else:
        replay(env, candidate.episode, steps=candidate.steps)


def worth(env: PruningEnv, choice: Choice) -> tuple[float, float]:
    """Worth of a choice by the selection split, which no policy has seen: objective score, then accuracy."""
    on_selection = replace(choice.candidate.measurement, accuracy=choice.selection_accuracy)
    score = env.objective.score(on_selection, env.recognizer.baseline_accuracy("selection"))
    return score, choice.selection_accuracy


def choose(env: PruningEnv, episodes: Iterable[Episode]) -> Choice:
    """Choose the best candidate that also meets the objective on the selection split.

    Under a tolerance: the largest reduction that is within tolerance on both splits. Under a budget: the highest
    accuracy on the selection split among the candidates nominated by the reward split. The recognizer is left in the
    chosen state.

    Raises:
        ConfigurationError: no state of any episode meets the objective on the reward split.
    """
    best: Choice | None = None
    for number, candidate in enumerate(nominate(env, episodes), start=1):
        restore(env, candidate)
        choice = Choice(candidate, env.recognizer.accuracy("selection"))
        if best is None or worth(env, choice) > worth(env, best):
            best = choice
        if number >= NOMINATIONS and worth(env, best)[0] > -np.inf:
            break
    if best is None:
        raise ConfigurationError(f"no episode met the objective of {env.task.name}: {env.objective!r}")
    restore(env, best.candidate)
    return best
