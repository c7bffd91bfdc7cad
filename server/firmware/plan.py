"""Who gets a bundle in which wave, who does not and why, and what that takes. Pure.

A plan is also the dry run: nothing of it depends on anything but its arguments and the seed.

Decided here:
- Everybody whom the filter found is in exactly one wave or excluded, by the first reason that holds
  in the order of `Why`; what a device runs is what it last *reported*, signed.
- A device that is too old for a release is excluded, with the release that would help it: the next
  hop from what it reported. These devices make `legs`, rollouts of their own; once confirmed they
  fit this rollout and join its tail.
- The order of devices is a lot: SHA-256 of seed and device. `commitment`, SHA-256 of the seed, is
  shown before the start, so nobody has chosen who is first, or who is a control.
- Controls, for the counts guard, are drawn among the counters before any wave is filled, by stratum
  as many as its share, at most a third of them, and stand in the last wave. With one wave there is
  nobody to wait, and the plan says that counts guard nothing.
- A wave takes a count, a share (rounded up) or all of those who are left and fit its filter. A
  stratified one takes the first of each stratum (model, network, format of store; the largest
  stratum first), then by their shares. Whoever no wave takes is excluded by name.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from protocol.release import version_key
from server.errors import RefusedError
from server.firmware.policy import Policy, WaveRule
from server.firmware.windows import Night
from server.fleet.lifecycle import WORKING

CONTROL_SHARE = 3
"""At most one counter in so many is a control."""
MOST_HOPS = 20


class Why(StrEnum):
    """Why a device is not in a plan; the first that holds."""

    NOT_WORKING = "not working"
    NEVER_REPORTED = "never reported"
    UNKNOWN_SETTING = "unknown setting"
    NEARER_LAYER = "nearer layer"
    WRONG_HARDWARE = "wrong hardware"
    ALREADY = "already there"
    NEWER = "newer already"
    BELOW_FLOOR = "below its floor"
    STEP = "stepping stone"
    OTHER_ROLLOUT = "other rollout"
    NOWHERE = "stands nowhere"
    FROZEN = "frozen"
    NO_WINDOW = "no window"
    NO_WAVE = "in no wave"


@dataclass(frozen=True, slots=True)
class Release:
    """A release as plans see it; `requires`: the least version from which it may be installed."""

    id: int
    component: str
    version: str
    floor: str
    requires: str | None
    hardware: frozenset[str]
    length: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the filter found. `running`, `floors`: by component, as it reported.

    `other`: the rollout that has it in hand, and that one's priority; None: none.
    """

    id: int
    name: str
    kind: str
    model: str
    state: str
    site: int | None = None
    spot: int | None = None
    door: int | None = None
    region: int | None = None
    site_name: str = ""
    format: str = ""
    network: str = ""
    reported: bool = False
    running: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, str] = field(default_factory=dict)
    other: tuple[str, int] | None = None

    @property
    def stratum(self) -> tuple[str, str, str]:
        return self.model, self.network, self.format


@dataclass(frozen=True, slots=True)
class Excluded:
    """A device that is left out, why in a sentence, and for STEP the release that helps."""

    device: Device
    why: Why
    text: str
    helps: Release | None = None


@dataclass(frozen=True, slots=True)
class Wave:
    """Devices in the order in which they are offered; `bytes`: all that they fetch."""

    number: int
    devices: tuple[Device, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Leg:
    """A rollout that comes first: a stepping stone for devices that are too old."""

    release: Release
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class OneWay:
    """A release after which so many devices cannot go back to what they run now."""

    release: Release
    devices: int
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done. `conflicts`: rollouts that have devices in hand, and how many of these
    are left out and how many taken from them (only such as have not begun to install)."""

    waves: tuple[Wave, ...]
    excluded: tuple[Excluded, ...]
    legs: tuple[Leg, ...]
    controls: tuple[Device, ...]
    one_way: tuple[OneWay, ...]
    conflicts: Mapping[str, tuple[int, int]]
    bytes_each: int
    commitment: str

    @property
    def devices(self) -> int:
        return sum(len(wave.devices) for wave in self.waves)

    @property
    def sites(self) -> int:
        return len({device.site for wave in self.waves for device in wave.devices})

    @property
    def bytes(self) -> int:
        return sum(wave.bytes for wave in self.waves)

    @property
    def reasons(self) -> Mapping[Why, int]:
        """How many devices are left out for what."""
        return Counter(each.why for each in self.excluded)

    def second_person(self, policy: Policy) -> list[str]:
        """Return why somebody else than the author must approve; nothing: the author may."""
        found = []
        if self.devices > policy.blast_radius:
            found.append(f"{self.devices} devices, more than {policy.blast_radius}")
        if policy.override_freezes:
            found.append("it overrides freezes")
        if self.one_way:
            number = sum(each.devices for each in self.one_way)
            found.append(f"there is no way back for {number} devices")
        return found


class EmptyPlanError(RefusedError):
    """No device would be reached; the message says why, by the most frequent reason."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        reasons = Counter(plan.reasons).most_common(3)
        said = "; ".join(f"{number} {why.value}" for why, number in reasons)
        super().__init__("no_devices", f"no device would be reached: {said or 'none was found'}")


def plan(
    devices: Iterable[Device],
    bundle: Sequence[Release],
    stones: Iterable[Release],
    nights: Mapping[int, Night] | None,
    policy: Policy,
    *,
    seed: str,
    found_by: Mapping[str, frozenset[int]] | None = None,
    back: bool = False,
    given: Mapping[int, tuple[Why, str]] | None = None,
) -> Plan:
    """Return the plan of a bundle for devices, or of what leaves out who is in `given`.

    `stones`: all releases that may be offered. `nights`: windows by site, None: at any time.
    `found_by`: the devices that each wave's filter finds. `back`: newer devices go back to this.
    """
    steps = sorted(stones, key=lambda each: version_key(each.version))
    fit: list[Device] = []
    excluded: list[Excluded] = []
    conflicts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for device in sorted(devices, key=lambda each: _lot(seed, each.name)):
        out = _left_out(device, nights, policy, given) if given is not None else None
        if given is None:
            out = _excluded(device, bundle, steps, nights, policy, back=back)
        if out is None:
            fit.append(device)
        else:
            excluded.append(out)
        if device.other is not None:
            conflicts[device.other[0]][out is None] += 1
    controls = _controls(fit, policy)
    waves, left = _waves(fit, controls, policy.waves, found_by or {}, sum(r.length for r in bundle))
    excluded += [Excluded(each, Why.NO_WAVE, "no wave takes it") for each in left]
    taken = [device for wave in waves for device in wave.devices]
    last = {device.id for device in waves[-1].devices} if len(waves) > 1 else set()
    return Plan(
        waves=tuple(waves),
        excluded=tuple(excluded),
        legs=_legs(excluded),
        controls=tuple(each for each in controls if each.id in last),
        one_way=_one_way(taken, bundle),
        conflicts={ref: (out, own) for ref, (out, own) in sorted(conflicts.items())},
        bytes_each=sum(release.length for release in bundle),
        commitment=hashlib.sha256(seed.encode()).hexdigest(),
    )


def _lot(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


# -- who is left out -----------------------------------------------------------------------------


def _excluded(
    device: Device,
    bundle: Sequence[Release],
    stones: Sequence[Release],
    nights: Mapping[int, Night] | None,
    policy: Policy,
    *,
    back: bool,
) -> Excluded | None:
    """Return why a device is left out, by the first reason of `Why` that holds."""
    if device.state not in WORKING:
        return Excluded(device, Why.NOT_WORKING, f"it is {device.state}")
    if not device.reported:
        return Excluded(device, Why.NEVER_REPORTED, "it has never said what it runs")
    return (
        _unfit(device, bundle, back=back)
        or _too_old(device, bundle, stones)
        or _taken(device, policy)
        or _awake(device, nights)
    )


def _left_out(
    device: Device,
    nights: Mapping[int, Night] | None,
    policy: Policy,
    given: Mapping[int, tuple[Why, str]],
) -> Excluded | None:
    """Return why a device is left out of what is no bundle."""
    if device.state not in WORKING:
        return Excluded(device, Why.NOT_WORKING, f"it is {device.state}")
    if device.id in given:
        return Excluded(device, *given[device.id])
    return _taken(device, policy) or _awake(device, nights)


def _unfit(device: Device, bundle: Sequence[Release], *, back: bool) -> Excluded | None:
    for release in bundle:
        if device.model not in release.hardware:
            known = ", ".join(sorted(release.hardware))
            text = f"{_name(release)} is approved for {known}, and this is {device.model or '?'}"
            return Excluded(device, Why.WRONG_HARDWARE, text)
    runs = [device.running.get(release.component) for release in bundle]
    if all(own == release.version for own, release in zip(runs, bundle, strict=True)):
        return Excluded(device, Why.ALREADY, "it runs all of it")
    for own, release in zip(runs, bundle, strict=True):
        if own is not None and _key(own) > _key(release.version) and not back:
            return Excluded(device, Why.NEWER, f"it runs {release.component} {own}")
    for release in bundle:
        floor = device.floors.get(release.component)
        if floor is not None and _key(release.version) < _key(floor):
            text = f"{_name(release)} is below {floor}, under which it never goes again"
            return Excluded(device, Why.BELOW_FLOOR, text)
    return None


def _too_old(
    device: Device, bundle: Sequence[Release], stones: Sequence[Release]
) -> Excluded | None:
    for release in bundle:
        own = device.running.get(release.component)
        if release.requires is None or _key(own) >= _key(release.requires):
            continue
        hop = next_hop(device, release, stones)
        said = f"{_name(release)} installs from {release.requires} on, and it runs {own or 'none'}"
        if hop is None:
            return Excluded(device, Why.STEP, f"{said}; no release leads there")
        return Excluded(device, Why.STEP, f"{said}; {_name(hop)} comes first", hop)
    return None


def next_hop(device: Device, target: Release, stones: Iterable[Release]) -> Release | None:
    """Return the first step of the shortest way from what a device reported to a release.

    Of ways of the same length the one over later versions. None: there is no way.
    """
    own, floor = device.running.get(target.component), device.floors.get(target.component)
    usable = [
        each for each in stones
        if each.component == target.component and device.model in each.hardware
        and _key(each.floor) <= _key(target.version) and each.id != target.id
        and _key(own) < _key(each.version) < _key(target.version)
        and (floor is None or _key(each.version) >= _key(floor))
    ]  # fmt: skip
    usable.sort(key=lambda each: _key(each.version), reverse=True)
    goal = [target]  # what leads there in one more hop, going backwards
    for _ in range(MOST_HOPS):
        before = [
            each for each in usable
            if any(_key(each.version) >= _key(after.requires) and
                   _key(each.version) < _key(after.version) for after in goal)
        ]  # fmt: skip
        for each in before:
            if each.requires is None or _key(own) >= _key(each.requires):
                return each
        if not before:
            return None
        goal = before
    return None


def _taken(device: Device, policy: Policy) -> Excluded | None:
    if device.other is None or policy.priority > device.other[1]:
        return None
    return Excluded(device, Why.OTHER_ROLLOUT, f"{device.other[0]} has it in hand")


def _awake(device: Device, nights: Mapping[int, Night] | None) -> Excluded | None:
    if nights is None:
        return None
    if device.site is None:
        return Excluded(device, Why.NOWHERE, "it stands at no site, so nobody knows when it rests")
    night = nights.get(device.site)
    if night is not None and night.windows:
        return None
    if night is not None and night.why is not None:
        why = Why.FROZEN if night.why.name == "FROZEN" else Why.NO_WINDOW
        return Excluded(device, why, night.why.value)
    return Excluded(device, Why.NO_WINDOW, "nothing is known of its site's hours")


def _key(version: str | None) -> tuple[int, ...]:
    return (-1,) if version is None else version_key(version)


def _name(release: Release) -> str:
    return f"{release.component} {release.version}"


def _legs(excluded: Iterable[Excluded]) -> tuple[Leg, ...]:
    found: dict[int, list[Device]] = defaultdict(list)
    releases: dict[int, Release] = {}
    for each in excluded:
        if each.helps is not None:
            found[each.helps.id].append(each.device)
            releases[each.helps.id] = each.helps
    ordered = sorted(releases.values(), key=lambda each: (each.component, _key(each.version)))
    return tuple(Leg(each, tuple(found[each.id])) for each in ordered)


def _one_way(devices: Iterable[Device], bundle: Sequence[Release]) -> tuple[OneWay, ...]:
    """Return the releases whose floor is above what devices run now: nothing leads back to it."""
    found = []
    for release in bundle:
        stuck = [
            device.running[release.component] for device in devices if raised(device, release)
        ]  # fmt: skip
        if stuck:
            versions = tuple(sorted(set(stuck), key=_key))
            found.append(OneWay(release, len(stuck), versions))
    return tuple(found)


def raised(device: Device, release: Release) -> bool:
    """Whether a release's floor is above what a device runs: it does not go back to that."""
    own = device.running.get(release.component)
    return own is not None and _key(own) < _key(release.floor)


# -- waves ---------------------------------------------------------------------------------------


def _controls(fit: Sequence[Device], policy: Policy) -> list[Device]:
    """Return the controls: counters that stand somewhere, by the share of each format of store."""
    if len(policy.waves) < 2 or not policy.guards.counts:
        return []
    doors = [device for device in fit if device.kind == "counter" and device.spot is not None]
    wanted = min(policy.controls, len(doors) // CONTROL_SHARE)
    return spread(doors, wanted, of=lambda device: (device.format,), each_first=False)


def _waves(
    fit: Sequence[Device],
    controls: Sequence[Device],
    rules: Sequence[WaveRule],
    found_by: Mapping[str, frozenset[int]],
    bytes_each: int,
) -> tuple[list[Wave], list[Device]]:
    """Return the waves that have anybody, and who is in none. Controls wait for the last wave."""
    kept = {device.id for device in controls}
    left = [device for device in fit if device.id not in kept]
    waves: list[Wave] = []
    for number, rule in enumerate(rules, 1):
        if number == len(rules):
            left += controls
        fits = [each for each in left if not rule.filter or each.id in found_by[rule.filter]]
        wanted = len(fits)
        if rule.count is not None:
            wanted = min(wanted, rule.count)
        elif rule.percent is not None:
            wanted = min(wanted, ceil(round(len(fits) * rule.percent / 100, 6)))
        chosen = fits[:wanted]
        if rule.stratified:
            chosen = spread(fits, wanted, of=lambda device: device.stratum, each_first=True)
        taken = {device.id for device in chosen}
        left = [device for device in left if device.id not in taken]
        if chosen:
            waves.append(Wave(len(waves) + 1, tuple(chosen), bytes_each * len(chosen)))
    return waves, left


def spread(
    devices: Sequence[Device],
    wanted: int,
    *,
    of: Callable[[Device], tuple[str, ...]],
    each_first: bool,
) -> list[Device]:
    """Return `wanted` devices, of each stratum as many as its share; their order decides within it.

    `each_first`: before that one of each stratum, the largest strata first.
    """
    strata: dict[tuple[str, ...], list[Device]] = defaultdict(list)
    for device in devices:
        strata[of(device)].append(device)
    ranked: list[tuple[float, int, Device]] = []
    order = sorted(strata.values(), key=lambda each: (-len(each), each[0].name))
    for number, members in enumerate(order):
        for at, device in enumerate(members):
            rank = -1.0 if each_first and at == 0 else (at + 0.5) / len(members)
            ranked.append((rank, number, device))
    ranked.sort(key=lambda each: each[:2])
    return [device for *_, device in ranked[:wanted]]


def demand_devices(made: Plan) -> None:
    """Raise EmptyPlanError if a plan reaches nobody."""
    if not made.devices:
        raise EmptyPlanError(made)
