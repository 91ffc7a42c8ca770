"""Tasks: every shipped one is valid, and what is wrong with a setting is said in one line with its key."""

from pathlib import Path

import pytest
import yaml

from envs.tasks import TaskConfig, load_task, make_recognizer, tasks
from recognizers.errors import ConfigurationError, FileError, UnknownNameError, WeightsError
from recognizers.settings import find, read_yaml, validate, write_yaml


class TestShipped:
    @pytest.mark.parametrize("name", tasks())
    def test_every_task_is_valid_and_goes_by_its_name(self, name: str) -> None:
        assert load_task(name).name == name

    @pytest.mark.parametrize(
        ("name", "suggestion"), [("digits/convnt", "digits/convnet"), ("cifar10/resnet50", "cifar10/resnet56")]
    )
    def test_unknown_task_is_refused_with_a_suggestion(self, name: str, suggestion: str) -> None:
        with pytest.raises(UnknownNameError, match=f"unknown task '{name}': did you mean .*'{suggestion}'"):
            load_task(name)

    def test_path_of_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**read_yaml(find("tasks", "digits/convnet")), "name": "mine"}))
        assert load_task(path).name == "mine"
        assert load_task(str(path), ["name=yours"]).name == "yours"

    def test_missing_file(self) -> None:
        with pytest.raises(FileError, match=r"no such file: nowhere\.yaml"):
            load_task("nowhere.yaml")


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("override_", "message"),
        [
            ("recogniser.x=1", "recogniser: unknown key; did you mean 'recognizer'"),
            ("recognizer.archtecture=x", "unknown key; did you mean 'architecture'"),
            ("recognizer.training.epoch=1", "unknown key; did you mean 'epochs'"),
            ("data.spek=digits", "unknown key; did you mean 'spec'"),
            ("actions.kid=unit", "unknown key; did you mean 'kind'"),
            ("recovery.imagess=3", "unknown key; did you mean 'images'"),
            ("objective.drap=0.1", "unknown key; did you mean 'drop'"),
        ],
    )
    def test_in_a_task(self, override_: str, message: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            load_task("digits/convnet", [override_])
        assert str(caught.value).startswith(f"{override_}: {message}")

    def test_within_another_kind_of_objective(self) -> None:
        with pytest.raises(ConfigurationError, match=r"^objective\.mac=0\.5: unknown key; did you mean 'macs'"):
            load_task("digits/convnet", ["objective.kind=budget", "objective.macs=0.5", "objective.mac=0.5"])

    @pytest.mark.parametrize(
        ("override_", "suggestion"), [("objective.kind=bugdet", "budget"), ("recovery.kind=finetun", "finetune")]
    )
    def test_unknown_kind(self, override_: str, suggestion: str) -> None:
        with pytest.raises(ConfigurationError, match=f"'{suggestion}'"):
            load_task("digits/convnet", [override_])


class TestWrongValues:
    @pytest.mark.parametrize(
        ("override_", "message"),
        [
            ("recovery.images=1", "Input should be greater than or equal to 2"),
            ("objective.drop=2", "Input should be less than 1"),
            ("recognizer.batch_size=many", "Input should be a valid integer"),
            ("actions.kind=blok", "Input should be 'unit', 'block', 'layer' or 'mask'"),
            ("recovery=3", "Input should be"),
            ("objective=3", "Input should be"),
            ("objective.kind=budget", "objective: Value error, "),
            ("recognizer.training.schedule=step", "recognizer.training: Value error, milestones"),
            ("data.held_out=1.5", "Input should be less than 1"),
        ],
    )
    def test_name_the_override_in_one_line(self, override_: str, message: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            load_task("digits/convnet", [override_])
        assert str(caught.value).startswith(f"{override_}: {message}")
        assert "\n" not in str(caught.value)

    def test_missing_section(self) -> None:
        with pytest.raises(ConfigurationError, match="mine: recognizer: Field required"):
            validate(TaskConfig, {"name": "mine", "data": {"spec": "digits"}}, "mine")


class TestOverrides:
    def test_kind_switch_in_a_task(self) -> None:
        task = load_task("digits/convnet", ["recovery.kind=none", "objective.kind=budget", "objective.macs=0.5"])
        assert task.recovery.model_dump() == {"kind": "none"}
        assert task.objective.model_dump() == {"kind": "budget", "macs": 0.5, "parameters": None, "latency": None}

    @pytest.mark.parametrize(
        "overrides",
        [
            [],
            ["recovery.kind=none", "objective.kind=budget", "objective.parameters=0.25"],
            ["recovery.kind=finetune", "recovery.learning_rate=1e-5", "data.mean=[0.1]", "data.std=[0.2]"],
        ],
    )
    def test_a_resolved_task_reads_back_as_itself(self, tmp_path: Path, overrides: list[str]) -> None:
        task = load_task("digits/convnet", overrides)
        write_yaml(tmp_path / "config.yaml", task)
        assert load_task(tmp_path / "config.yaml") == task


class TestRecognizer:
    def test_is_built_as_the_task_says(self, task: TaskConfig) -> None:
        recognizer = make_recognizer(task)
        assert recognizer.architecture == "convnet"
        assert recognizer.recovery == task.recovery
        assert [len(layer) for layer in recognizer.table.layers] == [6, 8, 8]

    def test_missing_weights(self, monkeypatch: pytest.MonkeyPatch, task: TaskConfig) -> None:
        monkeypatch.delenv("ZEROOUT_WEIGHTS_DIR", raising=False)
        without = task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"weights": None})})
        with pytest.raises(WeightsError, match="convnet on digits needs trained weights"):
            make_recognizer(without)
