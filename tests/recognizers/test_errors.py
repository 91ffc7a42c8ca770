"""Errors as one line."""

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from recognizers.errors import UnknownNameError, first_fault, in_one_line


class Inner(BaseModel):
    counts: list[int]


class Outer(BaseModel):
    inner: Inner
    more: int = 0


def test_the_first_fault_is_named_with_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"counts": [1, "many"]}, "more": "few"})
    assert first_fault(caught.value).startswith("inner.counts.1: Input should be a valid integer")
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("many")
    assert first_fault(caught.value).startswith("Input should be a valid integer")


def test_a_text_of_several_lines_becomes_one() -> None:
    error = ValueError("first:\n\n    second  \tthird")
    assert in_one_line(error) == "first: second third"
    assert in_one_line(error, 12) == "first: secon"
    assert in_one_line(ValueError()) == ""


def test_an_unknown_name_is_offered_its_neighbours() -> None:
    assert (
        str(UnknownNameError("task", "digit", ["digits", "cifar10"])) == "unknown task 'digit': did you mean 'digits'?"
    )
    assert str(UnknownNameError("task", "x", ["b", "a"])) == "unknown task 'x': known: a, b"
