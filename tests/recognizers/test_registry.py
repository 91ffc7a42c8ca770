"""Tables of named things."""

import pytest

from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.registry import Registry


def test_entries_are_found_by_name_and_registered_once() -> None:
    animals = Registry[type]("animal")
    assert animals.register("cat")(int) is int
    assert animals["cat"] is int and "cat" in animals and list(animals) == ["cat"]
    with pytest.raises(ConfigurationError, match="animal 'cat' is registered already"):
        animals.register("cat")(str)
    assert animals["cat"] is int
    with pytest.raises(UnknownNameError, match="unknown animal 'cot': did you mean 'cat'"):
        animals["cot"]
