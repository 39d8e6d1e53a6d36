"""What a measurement ran on, in words."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

__all__ = ["cores", "processor"]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name and the cores that this process may use."""
    names = (
        re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else []
    )
    return f"{names[0] if names else platform.processor()}, {cores()} cores"
