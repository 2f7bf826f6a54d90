"""Every network trains with sharded weights (FSDP2) on two ranks as it does with replicated ones (DDP)."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.net_zoo import KINDS
from tests.support.project import PROJECT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.net_ranks", str(tmp_path_factory.mktemp("ranks"))],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("net", KINDS)
def test_losses_and_state_do_not_depend_on_sharding(outcomes: dict[str, Any], net: str) -> None:
    replicated, sharded = outcomes["replicated"][net], outcomes["sharded"][net]
    assert sharded["losses"] == pytest.approx(replicated["losses"], rel=1e-5)
    assert sharded["rms"] == pytest.approx(replicated["rms"], rel=1e-3, abs=1e-6)
