"""Settings: unknown keys are refused with a suggestion, overrides go where they say, and errors are one line."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from recognizers.errors import ConfigurationError, FileError, UnknownNameError
from recognizers.settings import find, override, read_yaml, shipped, validate, write_yaml


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 1
    height: int = 1


class Circle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["circle"] = "circle"
    radius: float = 1


class Square(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["square"] = "square"
    side_length: float = 1
    inner: Inner = Inner()


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    maybe: Inner | None = None
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
    items: list[Inner] = []


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({"iner": {}}, "iner: unknown key; did you mean 'inner'"),
            ({"inner": {"widht": 1}}, "inner.widht: unknown key; did you mean 'width'"),
            ({"maybe": {"widht": 1}}, "maybe.widht: unknown key; did you mean 'width'"),
            ({"shape": {"kind": "circle", "radios": 1}}, "radios: unknown key; did you mean 'radius'"),
            ({"shape": {"kind": "square", "side_lenght": 1}}, "side_lenght: unknown key; did you mean 'side_length'"),
            ({"shape": {"kind": "square", "radius": 1}}, "radius: unknown key; known: inner, kind, side_length"),
            ({"shape": {"kind": "square", "inner": {"hight": 1}}}, "hight: unknown key; did you mean 'height'"),
            ({"items": [{"width": 1}, {"widht": 1}]}, "items.1.widht: unknown key; did you mean 'width'"),
            ({"qqq": 1}, "qqq: unknown key; known: inner, items, maybe, shape"),
        ],
    )
    def test_suggestion(self, tree: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            validate(Outer, tree, "my.yaml")
        text = str(caught.value)
        assert text.startswith("my.yaml: ")
        assert message in text
        assert "\n" not in text


class TestOverride:
    def test_values_are_yaml_and_the_original_stays(self) -> None:
        tree = {"a": {"b": 1, "c": [1]}, "d": "x"}
        result = override(tree, ["a.b=2.5", "a.c=[3, 4]", "d=null", "e.f.g={h: true}", " a.z = y "])
        assert result == {"a": {"b": 2.5, "c": [3, 4], "z": "y"}, "d": None, "e": {"f": {"g": {"h": True}}}}
        assert tree == {"a": {"b": 1, "c": [1]}, "d": "x"}

    def test_later_ones_win(self) -> None:
        assert override({"a": 1}, ["a=2", "a=3"]) == {"a": 3}

    def test_through_an_empty_section(self) -> None:
        assert override({"a": None}, ["a.b=1"]) == {"a": {"b": 1}}

    def test_values_may_hold_equal_signs(self) -> None:
        assert override({}, ["a=b=c"]) == {"a": "b=c"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a", "must read key=value"),
            ("=1", "must read key=value"),
            ("a..b=1", "must read key=value"),
            (".a=1", "must read key=value"),
            ("leaf.b=1", "'leaf' is a value, not a section"),
            ("listed.b=1", "'listed' is a value, not a section"),
            ("a=[1", "not valid YAML"),
            ("a={b", "not valid YAML"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            override({"leaf": 1, "listed": [1]}, [text])

    def test_another_kind_drops_the_keys_of_the_old_one(self) -> None:
        tree = {"recovery": {"kind": "bn", "images": 512}, "other": {"images": 1}}
        assert override(tree, ["recovery.kind=none"]) == {"recovery": {"kind": "none"}, "other": {"images": 1}}
        assert override(tree, ["recovery.kind=finetune", "recovery.steps=2"])["recovery"] == {
            "kind": "finetune",
            "steps": 2,
        }

    def test_the_same_kind_keeps_them(self) -> None:
        assert override({"r": {"kind": "bn", "images": 3}}, ["r.kind=bn"]) == {"r": {"kind": "bn", "images": 3}}

    @given(st.dictionaries(st.text("abc", min_size=1), st.integers(), max_size=3), st.text("abc", min_size=1))
    def test_a_key_set_is_a_key_read(self, tree: dict[str, int], key: str) -> None:
        assert override(tree, [f"{key}=7"]) == {**tree, key: 7}


class TestYaml:
    @pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "!!python/object/apply:os.system ['true']"])
    def test_invalid(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "t.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"t\.yaml is not valid YAML") as caught:
            read_yaml(tmp_path / "t.yaml")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- 1", "list"), ("x", "str")])
    def test_no_mapping(self, tmp_path: Path, text: str, kind: str) -> None:
        (tmp_path / "t.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=f"mapping of settings, not {kind}"):
            read_yaml(tmp_path / "t.yaml")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no such file"):
            read_yaml(tmp_path / "t.yaml")

    def test_round_trip(self, tmp_path: Path) -> None:
        outer = Outer(inner=Inner(width=3), shape=Square(side_length=1e-5), items=[Inner()])
        write_yaml(tmp_path / "t.yaml", outer)
        assert validate(Outer, read_yaml(tmp_path / "t.yaml"), "t.yaml") == outer


class TestWrongValues:
    @pytest.mark.parametrize(
        ("tree", "place"),
        [
            ({"inner": {"width": "wide"}}, "inner.width"),
            ({"inner": 3}, "inner"),
            ({"shape": {"kind": "triangle"}}, "shape"),
            ({"shape": {"radius": 1}}, "shape"),
            ({"items": [{}, {"width": None}]}, "items.1.width"),
            (3, "settings"),
        ],
    )
    def test_name_the_key_in_one_line(self, tree: dict[str, object], place: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            validate(Outer, tree, "my.yaml")
        assert str(caught.value).startswith(f"my.yaml: {place}: ")
        assert "\n" not in str(caught.value)


class TestOverridesAtFault:
    @pytest.mark.parametrize(
        ("overrides", "start"),
        [
            (["inner.width=wide"], "inner.width=wide: Input should be a valid integer"),
            (["inner.height=2", " inner.width = wide"], " inner.width = wide: Input should be a valid integer"),
            (["inner=3"], "inner=3: Input should be"),
            (["items=[{}, {width: null}]"], "items=[{}, {width: null}]: items.1.width: Input should be"),
            (["inner.widht=2"], "inner.widht=2: unknown key; did you mean 'width'"),
            (["shape.kind=square", "shape.radius=2"], "shape.radius=2: unknown key; known: inner"),
            (["shape.kind=square", "shape.inner.width=wide"], "shape.inner.width=wide: Input should be"),
            (["inner.width=1", "shape.kind=triangle"], "shape.kind=triangle: shape: unknown kind 'triangle'"),
        ],
    )
    def test_are_named_in_place_of_the_file(self, overrides: list[str], start: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            validate(Outer, {"inner": {"height": 3}}, "my.yaml", overrides)
        assert str(caught.value).startswith(start)

    @pytest.mark.parametrize("override", ["inner.height=2", "maybe.width=2", "shape.radius=2"])
    def test_others_are_not(self, override: str) -> None:
        with pytest.raises(ConfigurationError, match=r"^my\.yaml: inner\.width: "):
            validate(Outer, {"inner": {"width": "wide"}}, "my.yaml", [override])


class TestShipped:
    def test_every_configuration_is_found_by_name(self) -> None:
        for kind in ("tasks", "r2d2"):
            known = shipped(kind)
            assert known, kind
            for name, path in known.items():
                assert find(kind, name) == path
                assert isinstance(yaml.safe_load(path.read_text()), dict)

    def test_nothing_near(self) -> None:
        with pytest.raises(UnknownNameError, match=r"known: .*digits/convnet"):
            find("tasks", "zzzzzzzz")
