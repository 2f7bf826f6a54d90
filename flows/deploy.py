"""`python -m flows.deploy`: put the work pool, the deployments of prefect.yaml and the automations on the server.

Running it again updates them to what the files now contain. The server is the one that PREFECT_API_URL names.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.services import HEARTBEAT_SECONDS, POOL

MISSED = 3  # heartbeats that a running flow run may miss

DEAD_RUNS = "mark dead flow runs"
FLOW_RUN = "prefect.flow-run"
HEARTBEAT = f"{FLOW_RUN}.heartbeat"


def dead_runs() -> Automation:
    """The automation that marks a flow run as Crashed when its heartbeats stop although it has not ended.

    Normally the worker marks it. If the worker was killed together with the run, the run would stay Running for ever.
    """
    ends = {f"{FLOW_RUN}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return Automation(
        name=DEAD_RUNS,
        description="A run that was killed together with its worker would stay Running for ever.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ends},
            match={"prefect.resource.id": f"{FLOW_RUN}.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED * HEARTBEAT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message="No heartbeat: the process of this run was killed.",
                force=False,
            )
        ],
    )


async def _create_or_update(automation: Automation) -> None:
    """Create the automation, or update the one of that name."""
    try:
        existing = await Automation.aread(name=automation.name)
    except (ObjectNotFound, ValueError):
        await automation.acreate()
    else:
        automation.id = existing.id
        await automation.aupdate()


async def _prepare() -> None:
    async with get_client() as client:
        try:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            pass
    await _create_or_update(dead_runs())


def main() -> int:
    """Put everything on the server; returns the exit code of `prefect deploy`."""
    asyncio.run(_prepare())
    return subprocess.call([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"])


if __name__ == "__main__":
    sys.exit(main())
