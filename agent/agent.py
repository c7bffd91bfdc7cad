"""The agent: sensor, recorder, outbox and link in one process, opened and closed in order.

Decided here:
- One task each for the sensor, the clock's tick, the journal, health and the link, all owned by
  the TaskGroup in `run`; the first that fails ends all, and systemd starts us again.
- The journal is written `flush_s` (at most 1 s) after the first change; then the sensor hears of
  it. Only what is younger can be lost, and only by SIGKILL or a power cut.
- SQLite is called on the loop: an fsync of some ms a second delays nobody here.
- systemd's watchdog is fed by the tick: a loop that hangs starves it.
- What is set from afar counts over the settings file (`agent.settings`), from the next moment on.
"""

import asyncio
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from agent import factory, identity, logs
from agent.acts import HELD, Acts
from agent.clock import Clock, SystemClock
from agent.codes import Codes
from agent.config import AgentConfig
from agent.content import Asking, Terms
from agent.desired import Desired
from agent.doctor import State, examine
from agent.feed import SocketSensor, StdinSensor
from agent.gpio import GpioSensor
from agent.kiosk import Visits
from agent.link import Link, LinkOptions
from agent.notify import Notifier
from agent.orders import Orders
from agent.outbox import Outbox
from agent.plan import Plans
from agent.recorder import Recorder, RefusedError
from agent.renewal import Renewal
from agent.screen.screen import Screen
from agent.sensor import Button, Crossing, Event, Sensor
from agent.session import Session
from agent.settings import Settings
from agent.starts import Starts, goodbye, version
from agent.update.journal import File
from agent.update.launch import FOLDER, launched
from agent.update.run import Updates
from agent.update.slots import Directories
from agent.update.trial import Around
from agent.vitals import vitals
from protocol.session import FAILED, Goodbye
from protocol.settings import TABLE, Value, address_of

TICK_S = 1.0
BACK_S = 60  # until it is back from a restart, as the server is told

log = structlog.get_logger(__name__)


class RestartError(Exception):
    """This agent is to end, and to be started anew."""


class Agent:
    """Everything of one device. Raises NotEnrolledError or OutboxBusyError when made."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        sensor: Sensor | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.enrolled = identity.read(config.state)
        config.state.mkdir(parents=True, exist_ok=True)
        self.outbox = Outbox(config.outbox, max_bytes=round(config.max_mb * (1 << 20)))
        self.clock = clock or SystemClock(floor_ms=self.outbox.last_utc_ms)
        self.starts = Starts(config.state, kernel=self.clock.epoch)
        rng = rng or random.SystemRandom()
        self.recorder = Recorder(
            self.outbox,
            clock=self.clock,
            profile=config.profile(self.enrolled.kind),
            new_boot_id=lambda: rng.getrandbits(64),
        )
        name = f"vestibule {version()}"
        self.session = Session(self.outbox, clock=self.clock, rng=rng, agent=name)
        self.link = Link(
            identity.for_link(config.state),
            self.outbox,
            clock=self.clock,
            rng=rng,
            session=self.session,
            options=LinkOptions(
                retry_min_s=config.retry_min_s,
                retry_max_s=config.retry_max_s,
                spread_s=config.spread_s,
            ),
        )
        self.renewal = self._renewal(rng)
        self.sensor = sensor or self._sensor()
        self._visits = Visits()
        self.plans = self._plans(rng)
        self.codes = self._codes(rng)
        self.link.on_bell, self.link.on_connect = self._rung, self._connected
        self.screen = self._screen()
        self._goodbye = Goodbye(FAILED)  # until somebody means it
        self.link.on_leave = lambda: self._goodbye
        self._events = 0
        self._event_ms = self.clock.monotonic_ms()
        self._changed = asyncio.Event()
        self._notifier = Notifier()
        self._restart = asyncio.Event()
        self._health_s = config.health_s
        self._health_set = asyncio.Event()
        found: tuple[Asking | None, ...] = (self.plans, self.codes)
        self._asking = [each for each in found if each is not None]
        self.desired = self._desired(rng)
        self.updates = self._updates(rng)
        self._asking += [self.desired, self.updates]

    def take(self, event: Event) -> None:
        """Record an event now; RefusedError if that can't be done."""
        self._events += 1
        self._event_ms = self.clock.monotonic_ms()
        if isinstance(event, Crossing):
            self.recorder.count(event.line, entered=event.entered, left=event.left, feed=event.feed)
        elif isinstance(event, Button):
            if self.screen is None:
                raise RefusedError("this button means what is on a screen, and there is no page")
            self.screen.button(event.position)
            return
        else:
            self.recorder.show(event.questionnaire or self.recorder.profile.questionnaire)
            visit = event.visit
            if visit is None:
                visit = self._visits.ordinal(self.clock.monotonic_ms())
            self.recorder.press(
                event.question, event.answer, visit=visit, source=event.source, feed=event.feed
            )
        self._changed.set()

    def leave(self, said: Goodbye | None = None) -> None:
        """Be about to stop in order: `said`, or what can be found out, goes to the server."""
        self._goodbye = said or goodbye(self.config.state)
        self.updates.stop()
        self.starts.ended(self._goodbye.reason)

    def restart(self, reason: str = "restart") -> None:
        """End in order, to be started anew."""
        self.leave(Goodbye(reason, BACK_S))
        self._restart.set()

    async def run(self) -> bool:
        """Work until cancelled; then seal the open minutes. Return True to be started anew."""
        log.info(
            "agent started",
            device=self.enrolled.device,
            boot=f"{self.recorder.boot_id:016x}",
            waiting=self.outbox.pending(),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.sensor.run(self.take), name="sensor")
                tasks.create_task(self._tick(), name="tick")
                tasks.create_task(self._journal(), name="journal")
                tasks.create_task(self._health(), name="health")
                tasks.create_task(self.link.run(), name="link")
                tasks.create_task(self.desired.run(), name="desired")
                tasks.create_task(self.updates.run(), name="updates")
                tasks.create_task(self._restarting(), name="restart")
                if self.plans is not None:
                    tasks.create_task(self.plans.run(), name="plans")
                if self.codes is not None:
                    tasks.create_task(self.codes.run(), name="codes")
                if self.screen is not None:
                    tasks.create_task(self.screen.run(), name="screen")
                if self.renewal is not None:
                    tasks.create_task(self.renewal.run(), name="renewal")
                self._notifier.tell("READY=1")
        except* RestartError:
            log.info("agent starts anew")
        finally:
            self._notifier.tell("STOPPING=1")
            self.recorder.close()
            self.sensor.flushed()
            self.outbox.close()
            log.info("agent stopped")

        return True

    async def _restarting(self) -> None:
        await self._restart.wait()
        raise RestartError

    def status(self) -> dict[str, object]:
        """Return what `vestibule-agent status` shows."""
        quality, _ = self.clock.offset()
        renewal = self.renewal
        certificate = {} if renewal is None else renewal.status()
        return (
            certificate
            | {
                "device": self.enrolled.device,
                "kind": self.enrolled.kind,
                "connected": self.link.connected,
                "last_error": self.link.last_error,
                "clock": quality.name.lower(),
                "boot": f"{self.recorder.boot_id:016x}",
                "totals": [list(line) for line in self.recorder.totals.lines]
                or [list(answer) for answer in self.recorder.totals.answers],
                "frames_waiting": self.outbox.pending(),
                "outbox_bytes": self.outbox.bytes_held,
                "trouble": self.outbox.trouble,
            }
            | self.updates.status()
            | ({} if self.screen is None else self.screen.status())
        )

    async def _tick(self) -> None:
        while True:
            self.recorder.tick()
            self._notifier.tell("WATCHDOG=1")
            await self.clock.sleep(TICK_S)

    async def _journal(self) -> None:
        while True:
            await self._changed.wait()
            await self.clock.sleep(self.config.flush_s)
            self._changed.clear()
            if not self._flush():
                self._changed.set()  # the disk refuses: try again, and tell no feeder

    async def _health(self) -> None:
        while True:
            self._health_set.clear()
            waits = asyncio.ensure_future(self.clock.sleep(self._health_s))
            changed = asyncio.ensure_future(self._health_set.wait())
            try:
                await asyncio.wait({waits, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waits.cancel()
                changed.cancel()
            if waits.done() and not waits.cancelled():
                self.recorder.health(self.metrics())

    def metrics(self) -> dict[str, float]:
        """Return the device's health, by name."""
        outbox, tally = self.outbox, self.session.tally
        values = {
            "outbox.frames": float(outbox.pending()),
            "outbox.bytes": float(outbox.bytes_held),
            "outbox.thinned": float(outbox.thinned),
            "outbox.rotted": float(outbox.rotted),
            "outbox.moved_aside": float(outbox.moved_aside),
            "outbox.trouble": float(bool(outbox.trouble)),
            "link.connects": float(self.link.connects),
            "link.resent": float(tally.resent),
            "link.conflicts": float(tally.conflicts),
            "clock.quality": float(self.clock.offset()[0]),
            "link.refused": float(self.link.refused),
            "uptime.s": self.clock.monotonic_ms() / 1000,
            "boot.reason": float(self.starts.reason),
            "boot.count": float(self.recorder.ordinal),
            "sensor.events": float(self._events),
            "sensor.silent_s": (self.clock.monotonic_ms() - self._event_ms) / 1000,
        }
        if self.session.skew_ms is not None:
            values["clock.skew_ms"] = round(self.session.skew_ms, 1)
        if self.screen is not None:
            values |= self.screen.metrics()
        if self.plans is not None:
            values["plan.refused"] = float(self.plans.refused)
        if self.codes is not None:
            values["codes.refused"] = float(self.codes.refused)
        if self.renewal is not None:
            values["certificate.days"] = self.renewal.days_left
        return values | vitals(self.config.state) | self.sensor.health()

    def _renewal(self, rng: random.Random) -> Renewal | None:
        """Return what renews the certificate, if it is known where."""
        server = identity.server(self.enrolled, self.config.server)
        if server is None:
            log.warning("the certificate can't be renewed: set `server` in the settings")
            return None
        return Renewal(
            self.config.state,
            self.link,
            server=server,
            clock=self.clock,
            rng=rng,
            last_utc_ms=lambda: self.outbox.last_utc_ms,
        )

    def _plans(self, rng: random.Random) -> Plans | None:
        """Return what keeps a kiosk's plan; a counter has none."""
        if self.enrolled.kind != "kiosk":
            return None
        return Plans(
            self._terms(rng, self.config.spread_s),
            built_in=self.recorder.profile.questionnaire,
        )

    def _codes(self, rng: random.Random) -> Codes | None:
        """Return what keeps codes to show, where there is a page to show them on."""
        if self.plans is None or not self.config.screen_port:
            return None
        return Codes(self._terms(rng, self.config.spread_s))

    def _terms(self, rng: random.Random, spread_s: float) -> Terms:
        return Terms(
            self.config.state,
            server=identity.server(self.enrolled, self.config.server),
            clock=self.clock,
            rng=rng,
            last_utc_ms=lambda: self.outbox.last_utc_ms,
            spread_s=spread_s,
        )

    def _desired(self, rng: random.Random) -> Desired:
        """Return what keeps this device as it is to be, with what was set before in force."""
        config, profile = self.config, self.recorder.profile
        file: dict[str, Value] = {
            "health_s": round(config.health_s),
            "frame_s": profile.frame_s,
            "quiet_frame_s": profile.quiet_frame_s,
            "spread_s": round(config.spread_s),
            "retry_max_s": round(config.retry_max_s),
            "keepalive_s": self.link.options.keepalive_s,
            "log_level": config.log_level,
            "broker": "",
        }
        own = {key: file[key] for key in TABLE if self.enrolled.kind in TABLE[key].devices}
        desired: Desired
        acts = Acts(
            config,
            status=self.status,
            metrics=self.metrics,
            identify=self._identify,
            restart=self.restart,
            send=lambda order, content: desired.send_file(order, content),
        )
        desired = Desired(
            self._terms(rng, self.link.options.spread_s),
            link=self.link,
            settings=Settings(config.state, own=own, fits=self._fits, apply=self._apply),
            orders=Orders(config.state, kernel=self.clock.epoch),
            act=acts,
            agent=version(),
            boot=lambda: f"{self.recorder.boot_id:016x}",
        )
        return desired

    def _updates(self, rng: random.Random) -> Updates:
        """Return what keeps this device's code as it is to be."""
        config, screen = self.config, self.screen
        root = (config.state / FOLDER).absolute()
        around = Around(
            version=version(),
            idle_ms=lambda: self.clock.monotonic_ms() - self._event_ms,
            trouble=lambda: "outbox" if self.outbox.trouble else "",
            online=lambda: self.link.connected and self.session.answered,
            self_test=self._self_test,
            restart=lambda: self.restart("update"),
            show=None if screen is None else screen.show,
            drawn=lambda: screen is None or screen.drawn,
        )
        return Updates(
            self._terms(rng, self.link.options.spread_s),
            slots=Directories(root, identity=config.state / "identity"),
            paper=File(root),
            hardware=config.hardware,
            around=around,
            launched=launched(),
            reserve_bytes=round(config.max_mb * (1 << 20)),
        )

    async def _self_test(self) -> str:
        """Return which of the doctor's checks fails, empty if none does."""
        found = await asyncio.to_thread(lambda: list(examine(self.config, without=HELD)))
        return next((f"doctor.{each.check}" for each in found if each.state is State.FAIL), "")

    def _identify(self) -> str:
        """Make this device known by what it has; say how, empty if by its log alone."""
        shown = ["screen"] if self.screen is not None and self.screen.identify() else []
        return " ".join([*shown, *filter(None, [self.sensor.identify()])])

    def _fits(self, values: Mapping[str, Value]) -> bool:
        """Return True if frames of these lengths go with the readings that are taken here."""
        try:
            replace(
                self.recorder.profile,
                frame_s=int(values["frame_s"]),
                quiet_frame_s=int(values["quiet_frame_s"]),
            )
        except ValueError:
            return False
        return True

    def _apply(self, values: Mapping[str, Value]) -> None:
        """Put values into force: those that differ from what was."""
        profile, options = self.recorder.profile, self.link.options
        self.recorder.reframe(
            frame_s=int(values.get("frame_s", profile.frame_s)),
            quiet_frame_s=int(values.get("quiet_frame_s", profile.quiet_frame_s)),
        )
        self.link.options = replace(
            options,
            spread_s=float(values.get("spread_s", options.spread_s)),
            retry_max_s=float(values.get("retry_max_s", options.retry_max_s)),
            keepalive_s=int(values.get("keepalive_s", options.keepalive_s)),
        )
        if "spread_s" in values:
            for each in self._asking:
                each.spread(self.link.options.spread_s)
        if "health_s" in values:
            self._health_s = float(values["health_s"])
            self._health_set.set()
        if "log_level" in values:
            logs.set_level(str(values["log_level"]))
        if "broker" in values:
            self.link.address = address_of("broker", str(values["broker"]))

    def _rung(self) -> None:
        for each in self._asking:
            each.ring()

    def _connected(self) -> None:
        for each in self._asking:
            each.connected()

    def _screen(self) -> Screen | None:
        """Return the kiosk's page, if it is to have one."""
        if self.plans is None or not self.config.screen_port:
            return None
        return Screen(
            self.plans,
            self.codes,
            port=self.config.screen_port,
            pin=self.config.screen_pin,
            clock=self.clock,
            visits=self._visits,
            take=self.take,
            flush=self._flush,
            last_id=self.outbox.last_id,
            status=self.status,
        )

    def _flush(self) -> bool:
        """Journal at once what was recorded; True if it is on disk."""
        if not self.recorder.flush():
            return False
        self.sensor.flushed()
        return True

    def _sensor(self) -> Sensor:
        if self.config.sensor == "gpio":
            return GpioSensor(self.config.gpio)
        if self.config.sensor == "stdin":
            return StdinSensor(last_id=self.outbox.last_id, status=self.status, later=self._later)
        return SocketSensor(
            self.config.socket,
            last_id=self.outbox.last_id,
            status=self.status,
            later=self._later,
        )

    def _later(self, who: str, for_s: int) -> None:
        self.updates.later(who, for_s)


async def run(config: AgentConfig) -> bool:
    """Run an agent until SIGTERM or SIGINT; one that is not enrolled yet asks to be.

    Return True if it is to be started anew.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    running: list[Agent] = []

    def stop() -> None:
        for agent in running:
            agent.leave()
        if task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await factory.enrolled(
            config, clock=SystemClock(), rng=random.SystemRandom(), notifier=Notifier()
        )
        running.append(Agent(config))
        return await running[0].run()
    return False
