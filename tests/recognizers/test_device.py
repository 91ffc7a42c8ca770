"""Names of processors."""

import platform
from pathlib import Path

import pytest
import torch

from recognizers.device import device_name, processor_name

X86 = """processor\t: 0
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
flags\t\t: fpu

processor\t: 1
model name\t: other
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [(X86, "AMD EPYC (family 26, model 2)"), ("model name : Some ARM\n", "Some ARM"), ("", None), (None, None)],
)
def test_the_system_names_the_processor(tmp_path: Path, text: str | None, name: str | None) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert processor_name(path) == (name or platform.processor() or platform.machine())


def test_the_cpu_is_named_by_its_processor() -> None:
    assert device_name(torch.device("cpu")) == processor_name() != ""
