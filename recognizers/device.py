"""What computes: its name, for files and messages, and its maker."""

import functools
import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def device_name(device: torch.device) -> str:
    """Name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Name of the processor; where the system knows it with its family and model, as virtual ones share names."""
    facts = _facts(cpuinfo)
    name = facts.get("model name") or platform.processor() or platform.machine()
    known = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if facts.get(key)]
    return f"{name} ({', '.join(known)})" if known else name


def is_amd_processor(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether AMD made the processor, as far as the system tells."""
    return "AuthenticAMD" in (_facts(cpuinfo).get("vendor_id") or platform.processor())


@functools.cache
def _facts(cpuinfo: Path) -> dict[str, str]:
    """What Linux says of the first core; nothing on other systems."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first, _, _ = text.partition("\n\n")  # one paragraph a core
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
