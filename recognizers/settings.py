"""Typed settings from YAML files and dotted overrides, with errors that name the key and offer the nearest one."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from recognizers.errors import ConfigurationError, UnknownNameError, in_one_line
from recognizers.files import read_text, write_text

Settings = TypeVar("Settings", bound=BaseModel)


def shipped(kind: str) -> dict[str, Path]:
    """The configurations of one kind (``tasks``, ``r2d2``, ``benchmarks``) that zeroout ships, by name."""
    root = Path(str(resources.files("configs"))) / kind
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find(kind: str, name: str | os.PathLike[str]) -> Path:
    """Path of a configuration given by the name of a shipped one or by the path of a YAML file.

    Raises:
        UnknownNameError: neither.
    """
    if str(name).endswith((".yaml", ".yml")):
        return Path(name)
    known = shipped(kind)
    if str(name) not in known:
        raise UnknownNameError(kind.removesuffix("s"), str(name), known)
    return known[str(name)]


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML mapping (safe loader: data only).

    Raises:
        FileError: missing or unreadable.
        ConfigurationError: not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {in_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path} must hold a mapping of settings, not {type(tree).__name__}")
    return tree


def write_yaml(path: str | os.PathLike[str], settings: BaseModel) -> None:
    """Write settings atomically as YAML."""
    write_text(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def override(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tree`` with dotted ``key=value`` overrides put in; values are read as YAML.

    Setting ``kind`` of a section to another kind drops the section's other keys: they belong to the old kind.

    Raises:
        ConfigurationError: an override is not ``key=value``, or goes through a value that is no mapping.
    """
    result = _copy(tree)
    for text in overrides:
        _, equals, value = text.partition("=")
        keys = _keys(text)
        if not equals or not all(keys):
            raise ConfigurationError(f"override {text!r} must read key=value, as in recovery.images=256")
        section = result
        for key in keys[:-1]:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise ConfigurationError(f"override {text!r}: {key!r} is a value, not a section")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"override {text!r}: the value is not valid YAML") from error
        if keys[-1] == "kind" and section.get("kind") != parsed:
            section.clear()
        section[keys[-1]] = parsed
    return result


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def validate(model: type[Settings], tree: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> Settings:
    """Validate ``tree``, with ``overrides`` put in, as ``model``.

    Raises:
        ConfigurationError: one line that names the source or the overrides at fault, the key, what is wrong, and for an
            unknown key the nearest known one.
    """
    overrides = list(overrides)
    tree = override(tree, overrides) if overrides else tree
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        place = [str(part) for part in problem["loc"]]
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, place[:-1], tree)
            near = difflib.get_close_matches(place[-1], known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(known))}"
            message = f"unknown key; {hint}"
        elif problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
            message = str(UnknownNameError("kind", str(context["tag"]), tags))
        where = ".".join(place) or "settings"
        if guilty := [text for text in overrides if _leads_to(text, place)]:
            source = ", ".join(guilty)
            where = where if place[-1] != _keys(guilty[-1])[-1] else ""
        raise ConfigurationError(": ".join(filter(None, (source, where, message)))) from error


def _keys(text: str) -> list[str]:
    """The keys that lead to what an override sets."""
    return text.partition("=")[0].strip().split(".")


def _leads_to(text: str, place: Sequence[str]) -> bool:
    """Whether an override sets what is at ``place``, something in it, or what it is in."""
    keys = _keys(text)
    named = [part for part in place if part in keys]  # pydantic names kinds and positions in lists, too
    return bool(named) and keys[: len(named)] == named and (len(named) == len(keys) or named[-1] == place[-1])


def _fields_at(model: type[BaseModel], place: list[str], tree: Any) -> dict[str, FieldInfo]:
    """The fields of the model nested at ``place``; where there are several kinds, of the kind that ``tree`` names."""
    for part in place:
        if isinstance(tree, list):
            tree = tree[int(part)]
        elif part in model.model_fields:
            tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
        else:  # pydantic names the kind, too
            continue
        candidates = _models(model.model_fields[part].annotation) if part in model.model_fields else [model]
        kind = tree.get("kind") if isinstance(tree, Mapping) else None
        model = next((candidate for candidate in candidates if _kind(candidate) == kind), candidates[0])
    return model.model_fields


def _kind(model: type[BaseModel]) -> object:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, *(model for subclass in annotation.__subclasses__() for model in _models(subclass))]
    return [model for argument in get_args(annotation) for model in _models(argument)]
