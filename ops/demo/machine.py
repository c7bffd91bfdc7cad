"""The running demo: services, server, devices and their account, opened and closed in order."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog

from agent.clock import SystemClock
from agent.link import Identity, Link, LinkOptions
from agent.outbox import Outbox
from ops.demo.engineer import Engineer
from ops.demo.inspector import InspectedDevice
from ops.demo.kiosk import OpenKiosk
from ops.demo.meter import Door, Meter, Sum
from ops.demo.newcomer import FRAME_S as NEWCOMER_FRAME_S
from ops.demo.newcomer import Newcomer
from ops.demo.recovery import recover
from ops.demo.state import Folder, State
from ops.demo.supervisor import Supervisor
from ops.demo.world import MALL
from ops.proof import Proof, Sources, Spot, verify
from ops.services.stack import Endpoints
from protocol.identity import DeviceId
from protocol.label import parse
from server.provisioning.claims import root_fingerprint
from simulators.device import Conditions, SimDevice
from simulators.faults import FaultProxy, true_offset_ms
from simulators.fleet import Fleet, raise_file_limit
from simulators.truth import TruthFile, read

log = structlog.get_logger(__name__)

LIVE_FRAME_S = 15
INSPECTED_FRAME_S = 5
PRESSED_FRAME_S = 2  # who presses waits to see it
BUILT_IN = bytes(8)  # the questionnaire of a kiosk that has fetched no plan
LINK = LinkOptions(retry_min_s=0.5, retry_max_s=4.0)  # a demo's patience
_UPLOAD_POLL_S = 0.2


@dataclass(slots=True)
class Machine:
    """What the tour and the command line look at and act on."""

    folder: Folder
    state: State
    supervisor: Supervisor
    endpoints: Endpoints
    identities: dict[DeviceId, Identity]
    cable: FaultProxy
    mall: FaultProxy
    devices: list[SimDevice]
    inspected: InspectedDevice
    kiosk: OpenKiosk
    fleet: Fleet
    meter: Meter
    spots: dict[str, Spot]
    newcomer: Newcomer | None
    engineer: Engineer
    unplugged: list[DeviceId] = field(default_factory=list)

    @property
    def cable_in(self) -> bool:
        return not self.cable.refusing

    def plug_cable(self, plugged: bool) -> None:
        """Pull the inspected device's network cable, or put it back."""
        self.cable.refusing = not plugged
        if not plugged:
            self.cable.reset_all()

    @property
    def mall_linked(self) -> bool:
        return not self.mall.refusing

    def link_mall(self, linked: bool) -> None:
        """Cut the line that all devices of the mall share, or mend it."""
        self.mall.refusing = not linked
        if not linked:
            self.mall.reset_all()

    def welcome(self, device: SimDevice) -> None:
        """Let the newcomer be one of the devices."""
        self.meter.join(device)
        self.devices.append(device)
        self.fleet.join(device)

    async def prove(self, *, on_their_way: int = 0, before_minute: int | None = None) -> Proof:
        """Verify what was generated (before a minute since 1970) against SQL and API."""
        new = self.newcomer
        placed = {} if new is None or new.spot is None else {new.name: new.spot}
        sources = Sources(
            truths=self.folder.truths(),
            dsn=self.endpoints.dsn("maint"),
            api=self.supervisor.base,
            spots=self.spots | placed,
        )
        return await verify(sources, on_their_way=on_their_way, before_minute=before_minute)


@dataclass(frozen=True, slots=True)
class Told:
    """What the truth files held when the devices went live; `door` since local midnight."""

    total: Sum
    door: int
    since: datetime


def told_before(folder: Folder, device: str, zone: str) -> Told:
    """Read the truth files; `device` is the one whose day is shown."""
    today = datetime.now(ZoneInfo(zone)).date()
    since = datetime.combine(today, datetime.min.time(), ZoneInfo(zone))
    first = int(since.timestamp()) // 60
    total, door = Sum(), 0
    for path in folder.truths():
        truth = read(path)
        total += Sum(truth.people(), truth.pressed())
        door += sum(
            entered + left
            for (name, _, minute), (entered, left) in truth.counts.items()
            if name == device and minute >= first
        )
    return Told(total, door, since)


def spots_of(state: State) -> dict[str, Spot]:
    """Return where each device stands."""
    return {
        device: Spot(
            ref=state.spots[device],
            label=f"{place.site.name}, {place.device.spot}",
            kind=place.device.kind,
            zone=place.site.zone,
            key=state.keys[place.organisation.name],
            reversed=place.device.corrected,
        )
        for device, place in state.places().items()
    }


@asynccontextmanager
async def running(
    folder: Folder,
    state: State,
    supervisor: Supervisor,
    identities: dict[DeviceId, Identity],
    endpoints: Endpoints,
) -> AsyncIterator[Machine]:
    """Run every device live while the block runs; their outboxes upload what they hold."""
    raise_file_limit(len(identities), in_memory=False)
    shown, place = next((d, p) for d, p in state.places().items() if p.device.blind)
    book, marker = folder.root / "truth-live", folder.root / "running"
    truth = TruthFile(book)
    cable, mall = (
        FaultProxy(endpoints.broker_host, endpoints.broker_device_port) for _ in range(2)
    )
    async with cable.serving(), mall.serving(), asyncio.TaskGroup() as group:
        devices, inspected, kiosk = _devices(folder, state, identities, truth, cable, mall)
        newcomer = _newcomer(folder, state, supervisor, truth)
        if newcomer is not None and newcomer.device is not None:
            devices.append(newcomer.device)
        if marker.exists():  # the last demo was killed
            added = await asyncio.to_thread(recover, devices, book, truth)
            log.warning("the last demo was killed", told_by_outboxes=added)
        marker.touch()
        told = await asyncio.to_thread(told_before, folder, shown, place.site.zone)
        fleet = Fleet(devices, truth=truth)
        door = Door(inspected, state.spots[shown], told.since, told.door)
        meter = Meter(devices, told=told.total, dsn=endpoints.dsn("maint"), door=door)
        machine = Machine(
            folder=folder,
            state=state,
            supervisor=supervisor,
            endpoints=endpoints,
            identities=identities,
            cable=cable,
            mall=mall,
            devices=devices,
            inspected=inspected,
            kiosk=kiosk,
            fleet=fleet,
            meter=meter,
            spots=spots_of(state),
            newcomer=newcomer,
            engineer=_engineer(folder, supervisor, endpoints),
            unplugged=[d for d, place in state.places().items() if place.device.unplugged],
        )
        # before anybody presses; where no server answers it is tried again, and the last plan holds
        await asyncio.gather(*(each.plans.step() for each in devices if each.plans is not None))
        watches = [
            group.create_task(supervisor.watch(), name="supervisor"),
            group.create_task(machine.engineer.watch(), name="workshop"),
        ]
        uploads = [
            group.create_task(upload(identities[device], folder.outbox(device)))
            for device in machine.unplugged
        ]
        try:
            async with fleet.running(), asyncio.TaskGroup() as waiting:
                asking = waiting.create_task(_welcome(machine))
                yield machine
                asking.cancel()
        finally:
            for task in (*watches, *uploads):
                task.cancel()
            await asyncio.to_thread(machine.engineer.end)
            await meter.close()
            truth.close()
            marker.unlink()


def _engineer(folder: Folder, supervisor: Supervisor, endpoints: Endpoints) -> Engineer:
    assert supervisor.settings is not None
    return Engineer(folder.root / "workshop", supervisor.settings, dsn=endpoints.dsn("owner"))


async def _welcome(machine: Machine) -> None:
    """Let the newcomer ask, and join once it is let in."""
    if machine.newcomer is not None:
        await machine.newcomer.run(
            dsn=machine.endpoints.dsn("maint"),
            key=next(iter(machine.state.keys.values())),
            joined=machine.welcome,
        )


def _newcomer(
    folder: Folder, state: State, supervisor: Supervisor, truth: TruthFile
) -> Newcomer | None:
    """Return the device that waits for a technician; None in a world that was built without."""
    if not state.label:
        return None
    assert supervisor.settings is not None
    return Newcomer(
        state.newcomer,
        parse(state.label),
        disk=folder.device(state.newcomer),
        outbox=folder.outbox(state.newcomer),
        server=supervisor.settings.enrolment_url,
        root_sha256=root_fingerprint(supervisor.settings.pki),
        true_offset_ms=true_offset_ms(),
        truth=truth,
        conditions=Conditions(
            options=LINK,
            interval_s=NEWCOMER_FRAME_S,
            frame_s=NEWCOMER_FRAME_S,
            quiet_frame_s=NEWCOMER_FRAME_S,
        ),
    )


async def upload(identity: Identity, outbox_path: Path) -> None:
    """Send what an unplugged device had sent before: until all is receipted, then never again.

    It ends as if somebody pulled the plug: without a goodbye.
    """
    plug = FaultProxy(identity.broker_host, identity.broker_port)
    async with plug.serving():
        outbox, through = Outbox(outbox_path), _through(plug, identity)
        link = Link(through, outbox, clock=SystemClock(), rng=random.Random(1), options=LINK)  # noqa: S311
        task = asyncio.create_task(link.run())
        try:
            # an outbox tells nobody of its receipts
            while any(boot.acked < boot.next_seq for boot in outbox.boots):  # noqa: ASYNC110
                await asyncio.sleep(_UPLOAD_POLL_S)
            plug.refusing = True
            plug.reset_all()
        finally:
            task.cancel()
            await asyncio.wait({task})
            outbox.close()


def _devices(
    folder: Folder,
    state: State,
    identities: dict[DeviceId, Identity],
    truth: TruthFile,
    cable: FaultProxy,
    mall: FaultProxy,
) -> tuple[list[SimDevice], InspectedDevice, OpenKiosk]:
    offset = true_offset_ms()
    devices: list[SimDevice] = []
    inspected: InspectedDevice | None = None
    kiosk: OpenKiosk | None = None
    for device, place in state.places().items():
        if place.device.unplugged:
            continue
        identity, spec = identities[device], place.device.spec(device, end_ms=state.until_ms)
        if place.device.blind:
            inspected = InspectedDevice(
                spec,
                _through(cable, identity),
                outbox_path=folder.outbox(device),
                true_offset_ms=offset,
                truth=truth,
                conditions=_conditions(INSPECTED_FRAME_S),
            )
            devices.append(inspected)
            continue
        if place.site.name == MALL:
            identity = _through(mall, identity)
        pressed = place.device.tour
        made = (OpenKiosk if pressed else SimDevice)(
            replace(spec, questionnaire=BUILT_IN),  # what else it asks, it fetches
            identity,
            outbox_path=folder.outbox(device),
            disk=folder.device(device),
            true_offset_ms=offset,
            truth=truth,
            conditions=_conditions(PRESSED_FRAME_S if pressed else LIVE_FRAME_S),
        )
        if isinstance(made, OpenKiosk):
            kiosk = made
        devices.append(made)
    assert inspected is not None, "the world has one device to look at"
    assert kiosk is not None, "and one to press"
    return devices, inspected, kiosk


def _through(proxy: FaultProxy, identity: Identity) -> Identity:
    """Return the identity of a device whose way to the broker leads through a proxy."""
    return replace(identity, broker_host="127.0.0.1", broker_port=proxy.port)


def _conditions(frame_s: int) -> Conditions:
    return Conditions(
        options=LINK,
        interval_s=frame_s,
        frame_s=frame_s,
        quiet_frame_s=4 * LIVE_FRAME_S,
    )
