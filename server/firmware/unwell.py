"""Whether devices of a wave fall ill more often than those that wait: the guard by health.

Decided here:
- Ill is a device of which an episode opened since it confirmed: gone, restarting, flapping, silent,
  counting nothing. Those that wait in the same rollout count since the wave opened: for longer, so
  the comparison errs on their side.
- Hourly, of the wave that has to pass next, by Fisher's exact test, one-sided. There are some two
  hundred looks in a week of soaking, so each may err once in ten thousand; and three devices at
  least are ill, or one may be chance of another kind.
- Where nobody waits any more there is nothing to compare with: the last wave has this guard only as
  long as it is being offered.
"""

import math
from dataclasses import dataclass
from datetime import timedelta

from server.firmware.guards import CLOCKS_DIFFER, Guard
from server.firmware.rollout import Regressed
from server.firmware.rows import Held
from server.firmware.waves import ACTIVE
from server.health.judgement import Condition

EVERY = timedelta(hours=1)
P_MOST = 1e-4
LEAST = 3
_MOST = 5_000  # of either kind: more would tell nothing else
ILL = (
    Condition.OFFLINE,
    Condition.NO_HEARTBEAT,
    Condition.NO_DATA,
    Condition.REBOOT_LOOP,
    Condition.FLAPPING,
    Condition.FLATLINE,
    Condition.STUCK_COUNTER,
    Condition.STUCK_BUTTON,
    Condition.CLOCK_DRIFT,
    Condition.STORAGE,
    Condition.TEMPERATURE,
)


@dataclass(frozen=True, slots=True)
class Compared:
    """How many of those that were updated, and of those that wait, are ill."""

    updated: int
    updated_ill: int
    waiting: int
    waiting_ill: int

    @property
    def p(self) -> float:
        """How likely at least so many of the updated are ill, were the update of no effect."""
        ill = self.updated_ill + self.waiting_ill
        total = self.updated + self.waiting
        most = min(self.updated, ill)
        shares = (
            _log_choose(self.updated, k)
            + _log_choose(self.waiting, ill - k)
            - _log_choose(total, ill)
            for k in range(self.updated_ill, most + 1)
            if ill - k <= self.waiting
        )
        return min(1.0, math.fsum(math.exp(each) for each in shares))

    @property
    def worse(self) -> bool:
        """Whether that is too unlikely to be chance."""
        return self.waiting > 0 and self.updated_ill >= LEAST and self.p <= P_MOST


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


async def look(held: Held) -> Compared | None:
    """Compare the wave that has to pass next, once an hour; halt the rollout if it is worse."""
    wave = held.rollout.current()
    if wave is None or wave.state not in ACTIVE or not held.rollout.policy.guards.health:
        return None
    row = await held.connection.fetchrow(
        _LOOK,
        *(held.facts.id, held.now, held.now - EVERY, wave.number, wave.opened_at),
        *([each.value for each in ILL], _MOST, held.now + CLOCKS_DIFFER),
    )
    if row is None:
        return None
    found = Compared(*row)
    if found.worse:
        reason = (
            f"{found.updated_ill} of {found.updated} updated devices fell ill, "
            f"{found.waiting_ill} of {found.waiting} that wait"
        )
        share = round(100 * found.updated_ill / found.updated, 2)
        others = round(100 * found.waiting_ill / found.waiting, 2)
        held.take(
            Regressed(
                at=held.now,
                wave=wave.number,
                guard=Guard.HEALTH,
                found=share,
                limit=others,
                reason=reason,
            )
        )
    return found


_LOOK = """
with due as (
    update rollouts set health_at = $2 where id = $1
    and (health_at is null or health_at <= $3 or health_at > $8)
    and not exists (select from rollout_events v where v.rollout_id = $1 and v.event = 'halted'
        and v.detail ->> 'guard' = 'health' and (v.detail ->> 'wave')::int = $4)
    returning id),
updated as (
    select exists (select from episodes p where p.device_id = e.device_id
        and p.condition = any($6::text[]) and p.opened_at > e.ended_at) as ill
    from executions e, due where e.rollout_id = due.id and e.state = 'confirmed' and e.pool = $4
    order by e.id desc limit $7),
waiting as (
    select exists (select from episodes p where p.device_id = e.device_id
        and p.condition = any($6::text[]) and p.opened_at > $5) as ill
    from executions e, due where e.rollout_id = due.id and e.state = 'planned' and not e.attempted
    order by e.id desc limit $7)
select (select count(*) from updated)::int, (select count(*) from updated where ill)::int,
       (select count(*) from waiting)::int, (select count(*) from waiting where ill)::int
from due
"""
