"""Measurements that are no tests: speed, memory, statistical power and parity. `python -m benchmarks.NAME` runs one."""

import os

# As the stages run (see tasks.__main__): threads that have nothing to do must not keep the core of those measured next.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
