"""Names of processors."""

import platform
from pathlib import Path

import pytest
import torch

from recognizers.device import device_name, is_amd_processor, processor_name

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
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


@pytest.mark.parametrize(("text", "amd"), [(X86, True), (X86.replace("AuthenticAMD", "GenuineIntel"), False)])
def test_the_system_names_the_maker(tmp_path: Path, text: str, amd: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert is_amd_processor(path) == amd


@pytest.mark.parametrize(
    ("name", "amd"), [("AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD", True), ("Intel64, GenuineIntel", False)]
)
def test_elsewhere_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, amd: bool) -> None:
    monkeypatch.setattr(platform, "processor", lambda: name)
    assert is_amd_processor(tmp_path / "none") == amd
