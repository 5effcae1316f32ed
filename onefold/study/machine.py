"""On what a run ran: the facts that a reader needs to judge its times."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onefold.core.cores import cores


def facts(device: str | None = None) -> dict[str, Any]:
    """Python, torch, processor, cores, threads, memory, system. torch's own settings only if it is loaded already."""
    found: dict[str, Any] = {
        "onefold": _version("onefold"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "cpu": _cpu(),
        "cores": cores(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch := sys.modules.get("torch"):
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available() and device != "cpu":
            found["gpu"] = torch.cuda.get_device_name()
    if device:
        found["device"] = device
    return {name: value for name, value in found.items() if value is not None}


def peak_memory() -> int | None:
    """Most bytes of memory that this process had at once; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
