"""How a rollout goes about it, as data, checked: gates, guards, caps, timers, retries. Pure.

A policy is written with its rollout and never changed after. Every limit that is reached counts as
passed: all comparisons of guards and gates are `>=`. Who writes a policy approves it alone for at
most `MOST_ALONE` devices, whatever the policy says.
"""

from dataclasses import fields
from enum import StrEnum
from typing import Annotated

import msgspec

from server.errors import RefusedError
from server.firmware.windows import Rules

_DAY_S = 86_400
_Share = Annotated[float, msgspec.Meta(gt=0, le=100)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Short = Annotated[int, msgspec.Meta(ge=10, le=7 * _DAY_S)]
_Long = Annotated[int, msgspec.Meta(ge=60, le=90 * _DAY_S)]
_Soak = Annotated[int, msgspec.Meta(ge=0, le=30 * _DAY_S)]
_Budget = Annotated[int, msgspec.Meta(ge=0, le=10)]

MOST_ALONE = 50
"""No author approves a rollout to more devices than this; a policy may say less."""
MOST_WAVES = 50


class OnHalt(StrEnum):
    """What happens to devices of a rollout that a guard has halted.

    A halt means that the new version hurts: by default all that took it go back. Where health or
    counts have halted nobody has failed by his own word, so `revert failed` means all there, too.
    """

    KEEP = "keep"
    REVERT_FAILED = "revert failed"  # those that failed or were lost
    REVERT_ALL = "revert all"  # those that took it, too


class PolicyError(RefusedError):
    """A policy that is not one; the message says where and why."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_policy", message)


class WaveRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a wave takes of who is left: a count, a share, or all that a filter finds.

    Exactly one of `count` and `percent`, or neither: then all whom the filter leaves. A stratified
    wave takes its count or share evenly by model, network and format of store.
    """

    count: _Count | None = None
    percent: _Share | None = None
    filter: str = ""
    stratified: bool = False


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a wave passes: all three, and no guard."""

    success_pct: _Share = 95.0
    min_sample: _Count = 10
    soak_s: _Soak = _DAY_S


class Guards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What halts, since the last acknowledgement: `fail_abs` failed or lost, `lost_abs` lost.

    These of all waves together; a share of one wave that failed, from `min_sample` on.
    """

    fail_abs: _Count = 3
    fail_pct: _Share = 10.0
    min_sample: _Count = 10
    lost_abs: _Count = 2
    health: bool = True
    counts: bool = True


class Ramp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Offers a minute: `base`, times `factor` for each `step` that confirmed, at most `top`."""

    base: _Count = 10
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    step: _Count = 50
    top: _Count = 1_000


class Caps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many may be on their way at once. Two at one entrance never are.

    `site_bytes_per_s`: what the devices of one site together fetch; None: as fast as it goes.
    """

    in_flight: _Count = 50
    site: _Count = 1
    region: _Count | None = None
    bytes_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    site_bytes_per_s: Annotated[int, msgspec.Meta(ge=10_000, le=1_000_000_000)] | None = 250_000


class Timers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a device may stay in a phase without progress, from what it said, while it is there.

    `attempt_s` bounds them all together. `lost_s` is the clock of a device that is away, and runs
    while its site is open. `straggler_s`: how long after its wave opened a device may appear.
    """

    offered_s: _Short = 900
    accepted_s: _Short = 3_600
    downloading_s: _Short = 14_400
    ready_s: _Short = 3_600
    waiting_window_s: _Long = 15 * _DAY_S
    waiting_idle_s: _Long = 7 * _DAY_S
    installing_s: _Short = 3_600
    rebooting_s: _Short = 1_800
    trial_s: _Short = 3_600
    attempt_s: _Long = 21 * _DAY_S
    lost_s: _Long = _DAY_S
    straggler_s: _Long = 30 * _DAY_S
    defer_s: _Short = 1_800
    most_deferred_s: _Long = 7 * _DAY_S


class Retries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often each class of failure is tried again, the first after `backoff_s`, then doubled."""

    network: _Budget = 5
    storage: _Budget = 1
    timeout: _Budget = 2
    internal: _Budget = 1
    backoff_s: _Short = 300
    most_backoff_s: _Short = 21_600

    def budget(self, kind: str) -> int:
        """Return how often a class is tried again; one that is not named here, never."""
        return int(getattr(self, kind)) if kind in _RETRIED else 0

    def backoff(self, tried: int) -> int:
        """Return the seconds to wait after the failure number `tried`, from 1."""
        return int(min(self.most_backoff_s, self.backoff_s * 2 ** (tried - 1)))


_RETRIED = frozenset({"network", "storage", "timeout", "internal"})


class Joiners(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that come to fit a rollout after it was planned, and the tail that they make.

    `admit`: they join by themselves while it runs, `most` of them in all. `stay_s`: for so long
    after its last wave opened it does not complete, as more may come.
    """

    admit: bool = True
    most: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50
    stay_s: Annotated[int, msgspec.Meta(ge=0, le=90 * _DAY_S)] = 0


class OnDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device is told beside what it installs (`protocol.assignment`)."""

    idle_s: Annotated[int, msgspec.Meta(ge=0, le=_DAY_S)] = 60
    delay_s: Annotated[int, msgspec.Meta(ge=0, le=30 * _DAY_S)] = _DAY_S
    trial_s: Annotated[int, msgspec.Meta(ge=60, le=_DAY_S)] = 600


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. `blast_radius`: above so many devices, somebody else than the author approves.

    `windows`: when a site's devices install; None: at any time, as where it is `urgent`. Devices
    are offered it `ahead_s` before one opens, to fetch by then: who waits counts as on its way.
    `override_freezes`: also while a freeze is on, which a second person has approved.
    """

    waves: tuple[WaveRule, ...] = (
        WaveRule(count=10, stratified=True),
        WaveRule(percent=10, stratified=True),
        WaveRule(),
    )
    gate: Gate = Gate()
    guards: Guards = Guards()
    ramp: Ramp = Ramp()
    caps: Caps = Caps()
    timers: Timers = Timers()
    retries: Retries = Retries()
    device: OnDevice = OnDevice()
    joiners: Joiners = Joiners()
    windows: Rules | None = Rules()
    ahead_s: Annotated[int, msgspec.Meta(ge=0, le=14 * _DAY_S)] = 21_600
    on_halt: OnHalt = OnHalt.REVERT_ALL
    blast_radius: Annotated[int, msgspec.Meta(ge=0, le=MOST_ALONE)] = 20
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    urgent: bool = False
    override_freezes: bool = False
    controls: Annotated[int, msgspec.Meta(ge=0, le=500)] = 80


def read_policy(text: str | bytes) -> Policy:
    """Return the policy that JSON says; what it leaves out is as by default. Raises PolicyError."""
    try:
        policy = msgspec.json.decode(text, type=Policy)
    except msgspec.DecodeError as error:  # ValidationError among them
        raise PolicyError(str(error)) from error
    except RefusedError as error:  # what the windows say of themselves
        raise PolicyError(f"windows: {error}") from error
    asked = msgspec.json.decode(text).get("windows") or {}
    if unknown := set(asked) - {each.name for each in fields(Rules)}:
        raise PolicyError(f"windows: {min(unknown)!r} is not known")
    return _checked(policy)


def write_policy(policy: Policy) -> str:
    """Return a policy as JSON, whole: later defaults do not change it."""
    return msgspec.json.encode(policy).decode()


def _checked(policy: Policy) -> Policy:
    if not 1 <= len(policy.waves) <= MOST_WAVES:
        raise PolicyError(f"expected 1 to {MOST_WAVES} waves, got {len(policy.waves)}")
    for number, wave in enumerate(policy.waves, 1):
        if wave.count is not None and wave.percent is not None:
            raise PolicyError(f"wave {number} has a count and a share")
        if wave.stratified and wave.count is None and wave.percent is None:
            raise PolicyError(f"wave {number} takes all of them: there is nothing to sample")
    if policy.ramp.top < policy.ramp.base:
        raise PolicyError(f"the ramp begins at {policy.ramp.base}, above its top")
    return policy
