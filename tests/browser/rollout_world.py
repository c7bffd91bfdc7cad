"""The operator's fleet with releases to roll out, its devices scripted, in virtual time.

The pages, the conductor and the devices share one clock, which stands at a late evening and moves
only when a test lets time pass.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ops.services.stack import Stack
from protocol.update import Phase
from server.clock import ManualClock, at
from tests.browser.noc_world import Noc, noc, operator
from tests.firmware_world import Device, World

SECOND = "bo@example.com"
LATE = 22, 30
"""UTC, when every shop that closes is closed."""


@dataclass
class Engineers:
    """The pages, and what moves rollouts behind them."""

    noc: Noc
    firmware: World

    def pass_time(self, seconds: float, *, step_s: float = 10.0) -> None:
        """Let the conductor take its turns, and devices do their steps."""
        self.noc.run(self.firmware.pass_time(seconds, step_s=step_s))

    def until(self, state: str) -> None:
        """Let time pass until the rollout that was made last stands so."""
        for _ in range(20):
            self.pass_time(60)
            if self.noc.sql("select state from rollouts order by id desc")[0]["state"] == state:
                return
        raise AssertionError(f"no rollout is {state} after so long")

    def spoil(self, script: Sequence[Phase]) -> None:
        """Let every device that does not run 2.0.0 yet do otherwise than it should."""
        for device in self.firmware.devices.values():
            if device.version != "2.0.0":
                device.script = script


@contextmanager
def engineers(stack: Stack, folder: Path) -> Iterator[Engineers]:
    """Forty devices at five shops, of which one never closes; a counter can run 2.0.0."""
    now = datetime.now(UTC).replace(hour=LATE[0], minute=LATE[1], second=0, microsecond=0)
    clock = ManualClock(round(now.timestamp() * 1000))
    with noc(stack, folder, clock) as served:
        yield Engineers(served, served.run(_filled(served, clock)))


async def _filled(served: Noc, clock: ManualClock) -> World:
    owner, pools = served.owner, served.pools
    world = World(
        *(owner, pools["ingest"], pools["desk"], pools["maint"], clock, served.dsn["maint"]),
        organisation=served.organisation,
    )
    await operator(owner, served.passwords, served.organisation, SECOND, "Bo Ek")
    await owner.execute(
        "insert into opening_hours select organisation_id, id, day, 600, 1140 "
        "from sites, generate_series(0, 6) day where ref <> 'site-3'"
    )
    for version, floor in (("1.0.0", "1.0.0"), ("2.0.0", "1.0.0"), ("3.0.0", "2.0.0")):
        await world.release(version, floor=floor)
    await owner.execute(
        "update releases set length = 1400000, notes = $1, published_at = $2",
        *("Counts bicycles apart from people.", at(clock.now_ms())),
    )
    await owner.execute(
        "update bundles b set name = 'Agent ' || r.version from releases r "
        "where r.id = b.releases[1]"
    )
    said = {"agent": {"version": "1.0.0", "sha256": "", "floor": "1.0.0"}}
    await owner.execute(
        "insert into device_firmware (device_id, organisation_id, hardware, components, slot, "
        "reported_at) select id, organisation_id, model, $1, 'a', $2 from devices",
        *(json.dumps(said), at(clock.now_ms())),
    )
    rows = await owner.fetch("select id from devices where model = 'DC2'")
    world.devices |= {row["id"]: Device(row["id"], "1.0.0") for row in rows}
    return world
