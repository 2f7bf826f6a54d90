"""What this machine offers."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores this process may use (a container may be confined to some of the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
