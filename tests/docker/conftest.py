"""A machine to run the recipes on."""

import shutil
from collections.abc import Iterator

import pytest
from nodes import Machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if shutil.which("wget") is None:
        pytest.skip("the health checks need wget")
    with Machine() as machine:
        yield machine
