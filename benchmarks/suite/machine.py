"""On what, and with what, it was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_VERSION: Final = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_PACKAGES: Final = ("ray", "distributed", "grpcio", "protobuf", "cloudpickle", "msgpack")


def describe(cores: list[int]) -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores_used": cores,
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Return the versions of what was compared."""
    # Of the checkout: that is what the samples import, installed or not.
    ours = _VERSION.search((_CHECKOUT / "src/rustray/__init__.py").read_text())
    found = {"python": platform.python_version(), "rustray": ours.group(1) if ours else "unknown"}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
        found["commit"] = commit + (" with changes" if changed else "")
    return found


def use_cores(number: int) -> list[int]:
    """Keep this process and its children to so many cores; return which."""
    cores = sorted(os.sched_getaffinity(0))[:number]
    os.sched_setaffinity(0, cores)
    return cores


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
