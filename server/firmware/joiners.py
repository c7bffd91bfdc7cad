"""Who joins a rollout after it was planned, and how many: its tail. Pure.

Decided here:
- Nobody joins but what runs: not what is paused, halted, taken back or over, and no way back.
- By themselves join devices that one of the policy's waves would take all of. Where only a count or
  a share was wanted nobody is missing, so nobody follows.
- A second person who approved a policy has approved its `most`; who approved alone lets no more in,
  all together, than he may approve.
- The tail waits until all waves have passed, so nobody who joins is in a wave that has been judged,
  and none of them is a control. It has the gate and the guards of a wave, and halts the rollout;
  but what failures of the tail alone halt takes nobody back: they say nothing of those who passed.
- Who cannot go back joins only if the plan has said so of that release.
- `stay_s` keeps a rollout from completing for so long after its last wave opened.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.firmware.plan import Device, Release, raised
from server.firmware.policy import Policy, WaveRule
from server.firmware.waves import Rollout, State, WaveKind

KEY = "key "
"""How the name of an actor begins that is a key, and so no second person."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a device that is not in a rollout joins it by itself, or why it does not."""

    joins: bool
    text: str


def rules(policy: Policy) -> tuple[WaveRule, ...]:
    """Return the waves that take all of whom they find: who joins by itself fits one of them."""
    return tuple(each for each in policy.waves if each.count is None and each.percent is None)


def admits(rollout: Rollout) -> str:
    """Return why nobody joins a rollout now, by itself or not; empty: who fits may."""
    if rollout.reverse:
        return "it takes devices back, and nobody joins that"
    if rollout.state is not State.RUNNING:
        return f"nobody joins: it is {rollout.state.value}"
    return ""


def room(rollout: Rollout, approver: str) -> int:
    """Return how many more may join."""
    policy, tail = rollout.policy, rollout.waves[-1]
    if approver == rollout.author or approver.startswith(KEY):
        return max(0, policy.blast_radius - rollout.devices)
    return max(0, most(policy) - tail.size)


def most(policy: Policy) -> int:
    """Return how many join in all what a second person has approved."""
    return max(policy.blast_radius, policy.joiners.most if policy.joiners.admit else 0)


def awaits(rollout: Rollout, *, now: datetime) -> bool:
    """Whether a rollout whose last wave has opened is to wait for those who may join yet."""
    joiners = rollout.policy.joiners
    if not joiners.admit or rollout.reverse:
        return False
    opened = [wave.opened_at for wave in rollout.waves if wave.kind is WaveKind.WAVE][-1]
    return opened is not None and now < opened + timedelta(seconds=joiners.stay_s)


def no_way_back(
    device: Device, bundle: Sequence[Release], approved: Collection[tuple[str, str]]
) -> str:
    """Return what a device could not go back from though nobody approved that; empty: nothing."""
    for release in bundle:
        name = release.component, release.version
        if raised(device, release) and name not in approved:
            own = device.running[release.component]
            return f"{name[0]} {name[1]} leads nowhere back to {own}, which the plan did not say"
    return ""
