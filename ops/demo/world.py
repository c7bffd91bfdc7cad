"""The demo's world: three invented organisations, their sites, doors and devices. Pure.

What is wrong in it, on purpose: one counter is mounted backwards, one kiosk has been unplugged
since yesterday, and the station shop's sensor saw nothing for two hours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from simulators.hardware import DeviceSpec
from simulators.shapes import ALWAYS, Hours
from simulators.traffic import PERFECT, Door, Kiosk, Sensor

SEED = 20_261
QUESTIONNAIRE = bytes.fromhex("76657374696201a5")  # its definition: `QUESTIONS`
QUESTIONS = {
    "questions": [
        {"question": 0, "kind": "smiley4", "text": "How was your visit?", "answers": 4},
        {"question": 1, "kind": "nps", "text": "Would you recommend us?", "answers": 11},
    ]
}
LIVE_BUSIER = 4.0  # live traffic is this many times an ordinary Saturday's
HOUR_MS = 3_600_000

FASHION_HOURS: Hours = ((600, 1140),) * 5 + ((600, 1080), (660, 1020))
HOME_HOURS: Hours = ((600, 1080),) * 5 + ((600, 1020), (600, 960))
MALL_HOURS: Hours = ((600, 1260),) * 5 + ((600, 1200), (600, 1200))


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """A device and the spot it stands at. `blind` and `gone_since`: see the module."""

    spot: str
    door: Door
    sensor: Sensor = PERFECT
    kiosk: Kiosk | None = None
    blind: bool = False
    unplugged: bool = False

    @property
    def kind(self) -> str:
        return "counter" if self.kiosk is None else "kiosk"

    def spec(self, device: str) -> DeviceSpec:
        """Return the simulated hardware as it is on an ordinary day."""
        return DeviceSpec(device, self.door, SEED, self.sensor, self.kiosk, QUESTIONNAIRE)

    def live_spec(self, device: str) -> DeviceSpec:
        """Return it as it is while somebody watches: busy at any time of the day."""
        door = replace(
            self.door, hours=ALWAYS, staff=0, median_day=self.door.median_day * LIVE_BUSIER
        )
        return replace(self.spec(device), door=door)


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """A site and its devices; no hours: it never closes."""

    name: str
    zone: str
    currency: str
    hours: Hours | None
    devices: tuple[PlannedDevice, ...]


@dataclass(frozen=True, slots=True)
class PlannedOrganisation:
    """One of the three."""

    name: str
    sites: tuple[PlannedSite, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a planned device stands; `key` names it for good: organisation, site and spot."""

    organisation: PlannedOrganisation
    site: PlannedSite
    device: PlannedDevice

    @property
    def key(self) -> str:
        return f"{self.organisation.name} / {self.site.name} / {self.device.spot}"


def places(world: tuple[PlannedOrganisation, ...]) -> Iterator[Place]:
    """Yield every planned device with its place, in a fixed order."""
    for organisation in world:
        for site in organisation.sites:
            for device in site.devices:
                yield Place(organisation, site, device)


def stretches(device: PlannedDevice, *, start_ms: int, end_ms: int) -> tuple[tuple[int, int], ...]:
    """Return when the device observed: all the time, but for what is wrong with it."""
    if device.unplugged:
        return ((start_ms, end_ms - 19 * HOUR_MS),)
    if device.blind:
        return ((start_ms, end_ms - 3 * HOUR_MS), (end_ms - HOUR_MS, end_ms))
    return ((start_ms, end_ms),)


def busy_shift_ms(now_ms: int) -> int:
    """Return how far ahead the live public lives: it is Saturday, one o'clock, for it now."""
    local = datetime.fromtimestamp(now_ms / 1000, ZoneInfo("Europe/Stockholm"))
    days = (5 - local.weekday()) % 7
    busy = (local + timedelta(days=days)).replace(hour=13, minute=0, second=0, microsecond=0)
    return round((busy - local).total_seconds() * 1000)


def the_world() -> tuple[PlannedOrganisation, ...]:
    """Return the demo's organisations."""
    return (_fashion(), _home(), _mall())


_FASHION = (
    ("Stockholm Vasagatan", 900), ("Göteborg Avenyn", 750), ("Malmö Stortorget", 650),
    ("Uppsala", 520), ("Västerås", 420), ("Örebro", 400), ("Linköping", 450),
    ("Helsingborg", 380), ("Jönköping", 340), ("Norrköping", 330), ("Lund", 430), ("Umeå", 360),
)  # fmt: skip
_HOME = (
    ("København", 620), ("Aarhus", 480), ("Odense", 390), ("Aalborg", 340), ("Esbjerg", 240),
    ("Roskilde", 260),
)  # fmt: skip


def _fashion() -> PlannedOrganisation:
    sites = [
        PlannedSite(name, "Europe/Stockholm", "SEK", FASHION_HOURS, tuple(_shop(name, people)))
        for name, people in _FASHION
    ]
    door = _door("Centralen", people=7_000, hours=ALWAYS, staff=0)
    kiosk = Kiosk(rate=0.04, salt=99)
    station = PlannedSite(
        "Centralstationen",
        "Europe/Stockholm",
        "SEK",
        None,
        (
            PlannedDevice("Platform entrance", door, Sensor(lines=(0.6, 0.4)), blind=True),
            PlannedDevice("Feedback by the exit", door, kiosk=kiosk),
        ),
    )
    return PlannedOrganisation("Nordljus Mode", (*sites, station))


def _shop(name: str, people: int) -> Iterator[PlannedDevice]:
    main = _door(f"{name} main", people=people * 0.75)
    side = _door(f"{name} side", people=people * 0.25)
    backwards = name.startswith("Malmö")
    yield PlannedDevice("Main entrance", main, Sensor(0.02, 0.02, 0.03, backwards=backwards))
    yield PlannedDevice("Side entrance", side, Sensor(0.03, 0.01, 0.03))
    kiosk = Kiosk(rate=0.08, salt=people)
    yield PlannedDevice("Feedback by the exit", main, kiosk=kiosk, unplugged=name == "Uppsala")


def _home() -> PlannedOrganisation:
    sites = []
    for name, people in _HOME:
        door = _door(name, people=people, hours=HOME_HOURS, zone="Europe/Copenhagen")
        kiosk = Kiosk(rate=0.07, salt=people)
        devices = (
            PlannedDevice("Entrance", door, Sensor(0.02, 0.03, 0.03)),
            PlannedDevice("Feedback by the till", door, kiosk=kiosk),
        )
        sites.append(PlannedSite(name, "Europe/Copenhagen", "DKK", HOME_HOURS, devices))
    return PlannedOrganisation("Hjemkær", tuple(sites))


def _mall() -> PlannedOrganisation:
    shares = {"North": 0.34, "South": 0.27, "Car park": 0.2, "Tram stop": 0.12, "Terrace": 0.07}
    devices: list[PlannedDevice] = []
    for name, share in shares.items():
        door = _door(f"Mall {name}", people=9_000 * share, hours=MALL_HOURS, staff=2)
        devices.append(PlannedDevice(f"{name} entrance", door, Sensor(lines=(0.55, 0.45))))
        if share > 0.1:
            kiosk = Kiosk(rate=0.02, salt=round(share * 100))
            devices.append(PlannedDevice(f"{name} feedback", door, kiosk=kiosk))
    site = PlannedSite("Kvarnporten", "Europe/Stockholm", "SEK", MALL_HOURS, tuple(devices))
    return PlannedOrganisation("Kvarnporten Galleria", (site,))


def _door(
    name: str,
    *,
    people: float,
    hours: Hours = FASHION_HOURS,
    zone: str = "Europe/Stockholm",
    staff: int = 3,
) -> Door:
    return Door(name, zone=zone, median_day=people, hours=hours, staff=staff)
