"""Benchmarks of speed, memory, statistical power and parity. Run one with `python -m benchmarks.NAME`."""

import os

# The same setting as in tasks.__main__: idle threads must not occupy the core that the next measurement needs.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
