"""The demo's world: three invented organisations, their sites, doors and devices. Pure.

Live, the same people come as in the history, at the hour that it is: so a day under way can be
compared with one before. Shops that are closed count nobody, the station shop never closes.

What is wrong in it, on purpose: one counter is mounted backwards, as the register knows, and one
that it does not know of; one kiosk has been unplugged since yesterday; one door's sensor has been
dead since then, beside one that counts; and the station shop's sensor saw nothing for two hours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from protocol.questionnaire import Questionnaire, make
from simulators.hardware import DeviceSpec
from simulators.shapes import ALWAYS, STREET, Hours, Shape
from simulators.traffic import PERFECT, Door, Kiosk, Sensor

SEED = 20_261
MALL = "Kvarnporten"
"""The site whose link may be cut: nine devices on one line."""
UNPLUGGED = "Uppsala"
"""Where the kiosk is that has been unplugged since yesterday."""
BACKWARDS = "Malmö Stortorget"
"""Where the main entrance's counter is mounted backwards, which a calibration corrects."""
UNNOTICED = "Helsingborg"
"""Where it is mounted backwards, and nobody has noticed."""
DEAD = "Linköping"
"""Where the side entrance's sensor has been dead for a day and some hours."""
PUBLISHED: Questionnaire = make(
    {
        "format": 1,
        "languages": ["sv", "en"],
        "title": {"sv": "Ditt besök", "en": "Your visit"},
        "questions": [
            {
                "kind": "smiley4",
                "text": {
                    "sv": "Hur var ditt besök i {site}?",
                    "en": "How was your visit to {site}?",
                },
            },
            {
                "kind": "nps",
                "text": {
                    "sv": "Hur troligt är det att du rekommenderar oss?",
                    "en": "How likely are you to recommend us?",
                },
            },
        ],
    }
)
"""What all kiosks ask: published at each site, and fetched by each kiosk in its plan."""
HOUR_MS = 3_600_000
DEAD_MS = 30 * HOUR_MS  # whenever the demo begins, a whole day's opening is among them
EVER_MS = 1 << 52
EVEN_MONTHS = (1.0,) * 12  # a week and the one before may lie in two months, of one busyness
_ALL_DAY = (
    31, 30, 30, 30, 31, 34, 40, 50, 52, 44, 42, 44, 48, 48, 45, 45, 52, 56, 54, 46, 42, 38, 35, 33,
)  # fmt: skip
STATION = Shape("station", (1,) * 7, _ALL_DAY, _ALL_DAY, _ALL_DAY, _ALL_DAY)  # awake at night too

FASHION_HOURS: Hours = ((600, 1140),) * 5 + ((600, 1080), (660, 1020))
HOME_HOURS: Hours = ((600, 1080),) * 5 + ((600, 1020), (600, 960))
MALL_HOURS: Hours = ((600, 1260),) * 5 + ((600, 1200), (600, 1200))


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """A device and the spot it stands at. `blind`, `unplugged` and `dead`: see the module.

    `corrected`: mounted backwards, and the register knows; `tour`: the kiosk that may be pressed by
    who follows the tour.
    """

    spot: str
    door: Door
    sensor: Sensor = PERFECT
    kiosk: Kiosk | None = None
    blind: bool = False
    unplugged: bool = False
    dead: bool = False
    corrected: bool = False
    tour: bool = False

    @property
    def kind(self) -> str:
        return "counter" if self.kiosk is None else "kiosk"

    def spec(self, device: str, *, end_ms: int) -> DeviceSpec:
        """Return the simulated hardware, as it was in the history that ended then."""
        sensor = self.sensor
        if self.dead:
            sensor = replace(sensor, blind=((end_ms - DEAD_MS, EVER_MS),))
        return DeviceSpec(device, self.door, SEED, sensor, self.kiosk, PUBLISHED.hash)


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """A site and its devices; no hours: it never closes."""

    name: str
    zone: str
    currency: str
    hours: Hours | None
    devices: tuple[PlannedDevice, ...]

    def local(self, at_ms: int) -> datetime:
        return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(self.zone))

    def is_open(self, at_ms: int) -> bool:
        """Return whether its hours say that it is open at an instant."""
        if self.hours is None:
            return True
        local = self.local(at_ms)
        opening = self.hours[local.weekday()]
        return opening is not None and opening[0] <= local.hour * 60 + local.minute < opening[1]


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


@dataclass(frozen=True, slots=True)
class Moment:
    """What time it is in Stockholm, and how many of all sites are open then."""

    local: datetime
    open: int
    sites: int


def moment(at_ms: int) -> Moment:
    """Return an instant as the demo's people know it."""
    sites = [site for organisation in the_world() for site in organisation.sites]
    return Moment(
        local=datetime.fromtimestamp(at_ms / 1000, ZoneInfo("Europe/Stockholm")),
        open=sum(site.is_open(at_ms) for site in sites),
        sites=len(sites),
    )


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
        began, ended = blind_stretch(end_ms)
        return ((start_ms, began), (ended, end_ms))
    return ((start_ms, end_ms),)


def blind_stretch(end_ms: int) -> tuple[int, int]:
    """Return from and to when the blind sensor saw nothing, in a history that ends at `end_ms`."""
    return end_ms - 3 * HOUR_MS, end_ms - HOUR_MS


def the_world() -> tuple[PlannedOrganisation, ...]:
    """Return the demo's organisations."""
    return (_fashion(), _home(), _mall())


_FASHION = (
    ("Stockholm Vasagatan", 2_700), ("Göteborg Avenyn", 2_250), ("Malmö Stortorget", 1_950),
    ("Uppsala", 1_560), ("Västerås", 1_260), ("Örebro", 1_200), ("Linköping", 1_350),
    ("Helsingborg", 1_140), ("Jönköping", 1_020), ("Norrköping", 990), ("Lund", 1_290),
    ("Umeå", 1_080),
)  # fmt: skip
_HOME = (
    ("København", 1_860), ("Aarhus", 1_440), ("Odense", 1_170), ("Aalborg", 1_020),
    ("Esbjerg", 720), ("Roskilde", 780),
)  # fmt: skip


def _fashion() -> PlannedOrganisation:
    sites = [
        PlannedSite(name, "Europe/Stockholm", "SEK", FASHION_HOURS, tuple(_shop(name, people)))
        for name, people in _FASHION
    ]
    door = _door("Centralen", people=30_000, shape=STATION, hours=ALWAYS, staff=0)
    exit_ = _door("Centralen exit", people=4_000, shape=STATION, hours=ALWAYS, staff=0)
    kiosk = Kiosk(rate=0.06, salt=99)
    station = PlannedSite(
        "Centralstationen",
        "Europe/Stockholm",
        "SEK",
        None,
        (
            PlannedDevice("Platform entrance", door, Sensor(lines=(0.6, 0.4)), blind=True),
            PlannedDevice("Feedback by the exit", exit_, kiosk=kiosk, tour=True),
        ),
    )
    return PlannedOrganisation("Nordljus Mode", (*sites, station))


def _shop(name: str, people: int) -> Iterator[PlannedDevice]:
    main = _door(f"{name} main", people=people * 0.75)
    side = _door(f"{name} side", people=people * 0.25)
    sensor = Sensor(0.02, 0.02, 0.03, backwards=name in (BACKWARDS, UNNOTICED))
    yield PlannedDevice("Main entrance", main, sensor, corrected=name == BACKWARDS)
    yield PlannedDevice("Side entrance", side, Sensor(0.03, 0.01, 0.03), dead=name == DEAD)
    kiosk = Kiosk(rate=0.08, salt=people)
    yield PlannedDevice("Feedback by the exit", main, kiosk=kiosk, unplugged=name == UNPLUGGED)


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
        door = _door(f"Mall {name}", people=12_000 * share, hours=MALL_HOURS, staff=2)
        devices.append(PlannedDevice(f"{name} entrance", door, Sensor(lines=(0.55, 0.45))))
        if share > 0.1:
            kiosk = Kiosk(rate=0.02, salt=round(share * 100))
            devices.append(PlannedDevice(f"{name} feedback", door, kiosk=kiosk))
    site = PlannedSite(MALL, "Europe/Stockholm", "SEK", MALL_HOURS, tuple(devices))
    return PlannedOrganisation("Kvarnporten Galleria", (site,))


def _door(
    name: str,
    *,
    people: float,
    shape: Shape = STREET,
    hours: Hours = FASHION_HOURS,
    zone: str = "Europe/Stockholm",
    staff: int = 3,
) -> Door:
    """Return a door whose weeks are much alike: a reader sees the shop's rhythm, not the dice."""
    return Door(
        name,
        zone=zone,
        median_day=people,
        shape=shape,
        hours=hours,
        dispersion=1_000.0,
        day_sigma=0.03,
        staff=staff,
        months=EVEN_MONTHS,
    )
