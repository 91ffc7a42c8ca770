"""Recorded episodes: they read back as written, replay as recorded, and a doctored one is found out."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from envs import Episode, EpisodeError, InvalidActionError, PruningEnv, read_episodes, replay, validate, write_episodes
from envs.actions import Action, Stop
from envs.episodes import Recording, append_episodes, play, repair_episodes
from recognizers.errors import FileError


def _record(env: PruningEnv, seed: int = 0, **arguments: Any) -> Episode:
    generator = np.random.default_rng(seed)
    return play(
        env,
        lambda _, info: int(generator.choice(np.flatnonzero(info["action_mask"]))),
        seed=seed,
        policy="random",
        **arguments,
    )


@pytest.fixture(scope="module")
def env(make_env: Callable[..., PruningEnv]) -> PruningEnv:
    return make_env()


@pytest.fixture(scope="module")
def episode(env: PruningEnv) -> Episode:
    return _record(env)


class TestPlay:
    def test_records_what_happened(self, env: PruningEnv) -> None:
        infos: list[dict[str, Any]] = []
        episode = _record(env, on_step=infos.append, phase="evaluation")
        assert (episode.task, episode.policy, episode.seed) == ("digits/tiny", "random", 0)
        assert episode.base_sha256 == env.recognizer.base_sha256
        assert episode.terminated
        assert episode.phase == "evaluation"
        assert len(episode.actions) == len(infos) > 1
        for field, key in {
            "rewards": "reward",
            "accuracies": "accuracy",
            "parameter_reductions": "parameter_reduction",
            "macs_reductions": "macs_reduction",
        }.items():
            assert list(getattr(episode, field)) == [info[key] for info in infos]
        assert episode.episode_return == sum(episode.rewards)

    def test_a_recording_can_be_taken_at_any_time(self, env: PruningEnv) -> None:
        recording = Recording(env, seed=0, policy="one")
        assert recording.episode().actions == () and not recording.terminated
        assert recording.step(0) == recording.info["reward"]
        assert recording.episode().actions == (0,) and not recording.episode().terminated
        with pytest.raises(InvalidActionError):
            recording.step(0)
        assert recording.episode().actions == (0,)
        validate(env, recording.episode())

    def test_stops_where_the_policy_does(self, env: PruningEnv) -> None:
        decisions: list[Action | Stop] = [0, Stop.STOP]
        episode = play(env, lambda *_: decisions.pop(0), seed=0, policy="one")
        assert episode.actions == (0,)
        assert not episode.terminated
        validate(env, episode)

    def test_nothing_is_no_action(self, env: PruningEnv) -> None:
        with pytest.raises(InvalidActionError, match="action None is not an integer"):
            play(env, lambda *_: None, seed=0, policy="none")  # type: ignore[arg-type, return-value]


class TestReplay:
    @pytest.mark.parametrize("recovery", ["none", "bn", "finetune"])
    @pytest.mark.parametrize("objective", ["tolerance", "budget of MACs"])
    @pytest.mark.parametrize("actions", ["unit", "block", "layer"])
    def test_equals_the_record(
        self, make_env: Callable[..., PruningEnv], actions: str, objective: str, recovery: str
    ) -> None:
        sections = {
            "actions": actions,
            "objective": objective,
            "recovery": recovery,
        }
        env = make_env(**sections)
        episode = _record(env, seed=4)
        mask = env.recognizer.mask
        fresh = make_env(**sections)
        assert replay(fresh, episode) == episode
        assert np.array_equal(fresh.recognizer.mask, mask)
        validate(env, episode)

    def test_the_first_steps(self, env: PruningEnv, episode: Episode) -> None:
        part = replay(env, episode, steps=2)
        assert part.actions == episode.actions[:2]
        assert part.accuracies == episode.accuracies[:2]
        assert not part.terminated
        assert (env.recognizer.mask == 0).sum() > 0
        nothing = replay(env, episode, steps=0)
        assert nothing.actions == ()
        assert env.recognizer.mask.all()

    def test_other_base_weights(self, env: PruningEnv, episode: Episode) -> None:
        with pytest.raises(EpisodeError, match="other base weights"):
            replay(env, episode.model_copy(update={"base_sha256": "0" * 64}))


def _changed(episode: Episode, field: str, step: int, by: float) -> Episode:
    values = list(getattr(episode, field))
    values[step] += by
    return episode.model_copy(update={field: tuple(values)})


class TestValidate:
    @pytest.mark.parametrize("field", ["rewards", "accuracies", "parameter_reductions", "macs_reductions"])
    @pytest.mark.parametrize("step", [0, -1])
    @pytest.mark.parametrize("by", [1e-4, -1e-4, float("nan"), float("inf")])
    def test_a_figure(self, env: PruningEnv, episode: Episode, field: str, step: int, by: float) -> None:
        number = range(len(episode.actions))[step]
        with pytest.raises(EpisodeError, match=rf"step {number} \(action {episode.actions[step]}\): recorded {field}"):
            validate(env, _changed(episode, field, step, by))

    def test_rounding_is_forgiven(self, env: PruningEnv, episode: Episode) -> None:
        validate(env, _changed(episode, "rewards", 0, 1e-9))
        validate(env, _changed(episode, "accuracies", 0, 0.004), tolerance=0.005)

    def test_another_action(self, env: PruningEnv, episode: Episode) -> None:
        unused = next(action for action in range(12) if action not in episode.actions)
        for step in range(len(episode.actions)):
            actions = list(episode.actions)
            actions[step] = unused
            with pytest.raises(EpisodeError):
                validate(env, episode.model_copy(update={"actions": tuple(actions)}))

    @pytest.mark.parametrize("action", ["repeated", "missing", -1, 10**6])
    def test_an_action_that_is_not_valid(self, env: PruningEnv, episode: Episode, action: str | int) -> None:
        actions = list(episode.actions)
        if action == "missing":
            updates: dict[str, Any] = {
                field: getattr(episode, field)[:-1]
                for field in ("actions", "rewards", "accuracies", "parameter_reductions", "macs_reductions")
            }
        else:
            actions[1] = actions[0] if action == "repeated" else int(action)
            updates = {"actions": tuple(actions)}
        with pytest.raises(EpisodeError):
            validate(env, episode.model_copy(update=updates))

    def test_swapped_actions(self, env: PruningEnv, episode: Episode) -> None:
        first, second, *rest = episode.actions
        with pytest.raises(EpisodeError):
            validate(env, episode.model_copy(update={"actions": (second, first, *rest)}))

    def test_termination(self, env: PruningEnv, episode: Episode) -> None:
        with pytest.raises(EpisodeError, match="recorded terminated=False, replayed terminated=True"):
            validate(env, episode.model_copy(update={"terminated": False}))

    def test_steps_after_the_end(self, env: PruningEnv, episode: Episode) -> None:
        longer = {
            field: (*getattr(episode, field), getattr(episode, field)[-1])
            for field in ("rewards", "accuracies", "parameter_reductions", "macs_reductions")
        }
        unused = next(action for action in range(12) if action not in episode.actions)
        with pytest.raises(EpisodeError):
            validate(env, episode.model_copy(update={**longer, "actions": (*episode.actions, unused)}))

    def test_another_seed_where_it_matters(self, make_env: Callable[..., PruningEnv]) -> None:
        env = make_env(recovery="finetune", objective="never ends")
        episode = _record(env, seed=4)
        validate(env, episode)
        with pytest.raises(EpisodeError):
            validate(env, episode.model_copy(update={"seed": 5}))

    def test_another_recovery(self, make_env: Callable[..., PruningEnv], episode: Episode) -> None:
        with pytest.raises(EpisodeError):
            validate(make_env(recovery="finetune"), episode)


finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(0, 4))

    def column(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=length, max_size=length)))

    texts = st.text(st.characters(codec="utf-8"), max_size=8)
    return Episode(
        task=draw(texts),
        base_sha256=draw(texts),
        policy=draw(texts),
        seed=draw(st.integers(0, 2**63)),
        actions=column(st.integers(0, 10**6)),
        rewards=column(finite),
        accuracies=column(finite),
        parameter_reductions=column(finite),
        macs_reductions=column(finite),
        terminated=draw(st.booleans()),
        phase=draw(st.sampled_from(["run", "training", "evaluation"])),
    )


class TestFiles:
    @given(st.lists(episodes(), max_size=4), st.integers(0, 4))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_round_trip(self, tmp_path: Path, recorded: list[Episode], cut: int) -> None:
        path = tmp_path / "episodes.jsonl"
        write_episodes(path, recorded[:cut])
        append_episodes(path, recorded[cut:])
        assert list(read_episodes(path)) == recorded

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\r"])
    def test_only_newlines_part_lines(self, tmp_path: Path, episode: Episode, separator: str) -> None:
        recorded = episode.model_copy(update={"policy": f"a{separator}b"})
        write_episodes(tmp_path / "e.jsonl", [recorded, episode])
        assert list(read_episodes(tmp_path / "e.jsonl")) == [recorded, episode]

    def test_a_truncated_last_line_is_named(self, tmp_path: Path, episode: Episode) -> None:
        path = tmp_path / "e.jsonl"
        write_episodes(path, [episode, episode])
        content = path.read_bytes()
        for length in range(len(content) // 2 + 1, len(content) - 1, 7):
            path.write_bytes(content[:length])
            reader = read_episodes(path)
            assert next(reader) == episode
            with pytest.raises(EpisodeError, match=r"e\.jsonl, line 2: not JSON \(truncated or corrupt\)"):
                next(reader)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema_version": 2}, "schema_version"),
            ({"rewards": [1.0]}, "equal lengths"),
            ({"seed": "x"}, "seed"),
            ({"extra": 1}, "extra"),
            ({"phase": "dream"}, "phase"),
        ],
    )
    def test_a_line_that_is_no_episode(
        self, tmp_path: Path, episode: Episode, change: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "e.jsonl"
        path.write_text(json.dumps({**episode.model_dump(), **change}) + "\n")
        with pytest.raises(EpisodeError, match=f"line 1: .*{message}") as caught:
            list(read_episodes(path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("line", ["3", "null", "[]", '"x"', "{}"])
    def test_json_that_is_no_mapping(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "e.jsonl").write_text(line + "\n")
        with pytest.raises(EpisodeError, match="line 1"):
            list(read_episodes(tmp_path / "e.jsonl"))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no such file"):
            list(read_episodes(tmp_path / "e.jsonl"))

    def test_unequal_columns_are_refused(self, episode: Episode) -> None:
        with pytest.raises(ValidationError, match="equal lengths"):
            Episode.model_validate({**episode.model_dump(), "accuracies": ()})


class TestRepair:
    @pytest.mark.parametrize("policy", ["random", "Zürich→"])
    def test_a_kill_at_any_byte(self, tmp_path: Path, episode: Episode, policy: str) -> None:
        """Also in the middle of a character."""
        path = tmp_path / "e.jsonl"
        write_episodes(path, [episode])
        first = path.read_bytes()
        named = episode.model_copy(update={"policy": policy})
        append_episodes(path, [named])
        content = path.read_bytes()
        start = content.index(b'"policy"', len(first))
        for length in [len(first), len(first) + 1, *range(start, start + 24), len(content) - 1]:
            path.write_bytes(content[:length])
            repair_episodes(path)
            assert path.read_bytes() == first
            append_episodes(path, [named])
            assert list(read_episodes(path)) == [episode, named]

    def test_a_whole_file_is_left_alone(self, tmp_path: Path, episode: Episode) -> None:
        path = tmp_path / "e.jsonl"
        write_episodes(path, [episode])
        before = path.stat().st_mtime_ns, path.read_bytes()
        repair_episodes(path)
        assert (path.stat().st_mtime_ns, path.read_bytes()) == before

    def test_a_first_line_cut(self, tmp_path: Path) -> None:
        (tmp_path / "e.jsonl").write_text('{"task"')
        repair_episodes(tmp_path / "e.jsonl")
        assert (tmp_path / "e.jsonl").read_text() == ""

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "e.jsonl").write_text("")
        repair_episodes(tmp_path / "e.jsonl")
        assert list(read_episodes(tmp_path / "e.jsonl")) == []


class TestFailedWrites:
    def test_full_disk(self, tmp_path: Path, episode: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "e.jsonl"
        write_episodes(path, [episode])
        content = path.read_bytes()

        def disk_full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", disk_full)
        with pytest.raises(FileError, match="No space left"):
            write_episodes(path, [episode, episode])
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(FileError, match="No space left"):
            append_episodes(path, [episode])

    def test_folder_that_is_a_file(self, tmp_path: Path, episode: Episode) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(FileError, match="cannot write"):
            append_episodes(tmp_path / "file" / "e.jsonl", [episode])
