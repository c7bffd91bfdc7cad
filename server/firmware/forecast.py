"""What a plan takes: bytes, by wave and site, and when its waves would be done. Pure.

Everything here is at the soonest: as if every device were there, fetched at once, and succeeded. A
wave is done when the last of its sites has had windows enough for its devices, so many at a time as
the caps allow; the next begins after the soak.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from server.firmware.plan import Plan, Wave
from server.firmware.policy import Policy
from server.firmware.windows import Night

MARGIN_S = 60
"""What a device takes beside its trial, from the first byte moved to its last word."""
MOST_SITES = 10


@dataclass(frozen=True, slots=True)
class WaveTime:
    """When a wave opens and is done, at the soonest; None: beyond the horizon of windows."""

    number: int
    opens_s: int | None
    done_s: int | None


@dataclass(frozen=True, slots=True)
class SiteBytes:
    """What a site fetches, and how long that takes at its cap of bandwidth; None: no cap."""

    site: str
    devices: int
    bytes: int
    seconds: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Times by wave, and the sites that fetch the most, those first."""

    waves: tuple[WaveTime, ...]
    sites: tuple[SiteBytes, ...]

    @property
    def done_s(self) -> int | None:
        return self.waves[-1].done_s if self.waves else None


def forecast(
    plan: Plan, nights: Mapping[int, Night] | None, policy: Policy, *, now_s: int
) -> Forecast:
    """Return what a plan takes."""
    times: list[WaveTime] = []
    at_s: int | None = now_s
    for wave in plan.waves:
        done = None if at_s is None else _done(wave, nights, policy, at_s=at_s)
        times.append(WaveTime(wave.number, at_s, done))
        at_s = None if done is None else done + policy.gate.soak_s
    return Forecast(tuple(times), _sites(plan, policy))


def needs_s(policy: Policy) -> int:
    """Return how long a window must be for one device."""
    return policy.device.trial_s + MARGIN_S


def _done(
    wave: Wave, nights: Mapping[int, Night] | None, policy: Policy, *, at_s: int
) -> int | None:
    """Return when the last site of a wave is done, at the soonest."""
    needs = needs_s(policy)
    rounds = ceil(len(wave.devices) / policy.caps.in_flight)
    done = at_s + rounds * needs
    if nights is None:
        return done
    for site, number in Counter(device.site for device in wave.devices).items():
        night = nights.get(site) if site is not None else None
        left = ceil(number / policy.caps.site)
        for low, high in night.windows if night is not None else ():
            begin = max(low, at_s)
            fit = max(0, (high - begin) // needs)
            if fit >= left:
                done, left = max(done, begin + left * needs), 0
                break
            left -= fit
        if left:
            return None
    return done


def _sites(plan: Plan, policy: Policy) -> tuple[SiteBytes, ...]:
    names: dict[int, str] = {}
    number: Counter[int] = Counter()
    for wave in plan.waves:
        for device in wave.devices:
            if device.site is not None:
                names[device.site] = device.site_name
                number[device.site] += 1
    most = sorted(number, key=lambda site: (-number[site], names[site]))[:MOST_SITES]
    cap = policy.caps.site_bytes_per_s
    return tuple(
        SiteBytes(
            names[site],
            number[site],
            number[site] * plan.bytes_each,
            None if cap is None else ceil(number[site] * plan.bytes_each / cap),
        )
        for site in most
    )
