"""Memory as the kernel counts it (Linux): what a piece of work takes at its peak, and what is left."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


def peak_above_now_mib(work: Callable[[], object]) -> float:
    """MiB by which the resident set of this process rises above its present size while `work` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kib("/proc/self/status", "VmRSS")
    work()
    return (_kib("/proc/self/status", "VmHWM") - before) / 1024


def peak_mib() -> float:
    """MiB of this process at its largest, from its start until now."""
    return _kib("/proc/self/status", "VmHWM") / 1024


def available_mib() -> float:
    """MiB that new work can take before the machine runs out."""
    return _kib("/proc/meminfo", "MemAvailable") / 1024


def _kib(file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{file} has no {field}: this measurement needs Linux")
    return int(found[1])
