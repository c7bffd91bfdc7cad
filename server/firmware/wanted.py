"""What is under way of a device: the execution, the releases that it brings, what they are worth.

A device is told only of executions that its organisation of now has made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from protocol.update import Attempt, Component
from server.firmware.assignments import Offered
from server.firmware.life import State
from server.firmware.policy import Policy, read_policy
from server.firmware.waves import WITHDRAWN
from server.firmware.whereabouts import stands

_WITHDRAWN = [state.value for state in WITHDRAWN]


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is under way of a device, and what its rollout says of it.

    `attempt`: the try that the device is at. `running`: more may begin; `withdrawn`: the rollout is
    being cancelled or taken back. `model` and `site`: what the device is, and where it stands now.
    """

    id: int
    ref: str
    rollout: str
    running: bool
    withdrawn: bool
    state: State
    attempt: Attempt
    model: str
    site: int | None
    releases: tuple[Offered, ...]
    policy: Policy


@dataclass(frozen=True, slots=True)
class Grant:
    """That a device may fetch an artifact; `rate`: bytes a second of its site, None: any."""

    device: str
    site: int | None
    rate: int | None


_UNDER_WAY = f"""
    select e.id, e.ref, o.ref as rollout, e.state, e.attempt, d.device, d.model, o.policy,
           o.state = 'running' as running, o.state = any($3) as withdrawn,
           coalesce(e.releases, b.releases) as releases, w.site_id as site
    from executions e
    join devices d on d.id = e.device_id and d.organisation_id = e.organisation_id
    join rollouts o on o.id = e.rollout_id left join bundles b on b.id = o.bundle_id
    {stands("d.id", "$2")}
    where e.device_id = $1 and e.ended_at is null and e.state <> 'planned'
"""  # noqa: S608
_RELEASES = """
    select r.component, r.version, r.floor, r.target, r.length, r.sha256,
           r.withdrawn_at is not null as withdrawn
    from unnest($1::int[]) with ordinality n(id, place) join releases r using (id) order by place
"""
_GRANT = f"""
    {_UNDER_WAY} and not o.state = any($3) and exists (
        select from releases r where r.id = any(coalesce(e.releases, b.releases))
        and r.sha256 = $4 and r.withdrawn_at is null)
"""


async def under_way(
    connection: asyncpg.Connection, device: int, *, now: datetime
) -> UnderWay | None:
    """Return what is under way of a device and brings it releases; None if nothing does."""
    row = await connection.fetchrow(_UNDER_WAY, device, now, _WITHDRAWN)
    if row is None or row["releases"] is None:
        return None
    releases = await connection.fetch(_RELEASES, row["releases"])
    return UnderWay(
        id=row["id"],
        ref=row["ref"],
        rollout=row["rollout"],
        running=row["running"],
        withdrawn=row["withdrawn"],
        state=State(row["state"]),
        attempt=Attempt(row["ref"], row["attempt"]),
        model=row["model"],
        site=row["site"],
        releases=tuple(Offered(*each) for each in releases),
        policy=read_policy(row["policy"]),
    )


async def granted(
    connection: asyncpg.Connection, device: int, sha256: str, *, now: datetime
) -> Grant | None:
    """Return whether a device may fetch these bytes: what is under way of it names them."""
    row = await connection.fetchrow(_GRANT, device, now, _WITHDRAWN, sha256)
    if row is None:
        return None
    rate = read_policy(row["policy"]).caps.site_bytes_per_s
    return Grant(row["device"], row["site"], rate)


def runs(components: Mapping[str, Component], releases: Sequence[Offered]) -> bool:
    """Whether a device that runs these components runs these releases, byte for byte."""
    return all(
        each.component in components
        and components[each.component].version == each.version
        and components[each.component].sha256 == each.sha256
        for each in releases
    )
