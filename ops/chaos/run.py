"""One whole run of chaos on a system: enrol, torture, and say what is proved."""

import asyncio
import time

from ops.chaos.device import AgentSettings
from ops.chaos.plan import Fault, plan
from ops.chaos.system import System
from ops.chaos.torture import Outcome, Say, Torture
from simulators.faults import FaultProxy

SETTINGS = (
    AgentSettings(kind="counter", lines=2, interval_s=1, frame_s=2, quiet_frame_s=10),
    AgentSettings(kind="counter", lines=2, interval_s=5, frame_s=5, quiet_frame_s=15),
    AgentSettings(kind="counter", lines=1, interval_s=15, frame_s=15, quiet_frame_s=15),
    AgentSettings(kind="kiosk", lines=1, interval_s=5, frame_s=5, quiet_frame_s=15),
)
"""What the agents are, in turn: short frames, so that many cross the system while it is killed."""


def chaos(
    system: System, *, seed: int, seconds: float, agents: int, rate: float = 4.0, say: Say
) -> Outcome:
    """Enrol `agents` devices, torture all for `seconds`, and return what is proved.

    The system's services must be nobody else's. Its agents still run afterwards, without a broker.
    """
    began = time.monotonic()
    for number, settings in enumerate(SETTINGS):
        system.enrol(len(range(number, agents, len(SETTINGS))), settings=settings)
    say(f"{agents} devices enrolled in {time.monotonic() - began:.1f} s")
    faults = plan(seed=seed, seconds=seconds, agents=agents)
    return asyncio.run(_tortured(system, faults, seed=seed, rate=rate, say=say))


async def _tortured(
    system: System, faults: tuple[Fault, ...], *, seed: int, rate: float, say: Say
) -> Outcome:
    proxy = FaultProxy("127.0.0.1", system.deployment.settings.device_broker_port, seed=seed)
    async with proxy.serving():
        for device in system.devices:
            device.dial(proxy.port)
        api = await asyncio.to_thread(system.api)
        return await Torture(system, proxy, say, seed, rate).run(faults, api=api)


def closing(outcome: Outcome) -> str:
    """Return what was done, what is wrong, and the closing line."""
    done = ", ".join(f"{name} {count} times" for name, count in sorted(outcome.done.items()))
    took = outcome.converged_s
    return "\n".join(
        [
            f"faults: {done}",
            *(f"crash: {crash}" for crash in outcome.crashes),
            f"converged {took:.1f} s after the last fault" if took is not None else "not converged",
            outcome.verdict.report(),
        ]
    )
