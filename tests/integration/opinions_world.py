"""Raw presses in the API's world: as ingest stores them, with their quarters and what is dirty."""

from datetime import datetime, timedelta

from server.feedback import responses
from tests.integration.api_world import World


async def press(
    world: World, spot: int, start: datetime, touches: list[tuple[float, int]], *, question: int = 0
) -> None:
    """Store presses at seconds after `start`, a visit each, of the built-in questionnaire."""
    first = await world.owner.fetchval(
        "select coalesce(max(visit), 0) + 1 from presses where spot = $1", spot
    )
    at = [start + timedelta(seconds=s) for s, _ in touches]
    async with world.owner.transaction():
        await world.owner.executemany(
            "insert into presses values ($1, 0, $2, $2, 1, 1, $3, $4, $5, 0)",
            [
                (when, spot, first + number, question, answer)
                for number, (when, (_, answer)) in enumerate(zip(at, touches, strict=True))
            ],
        )
        await world.owner.executemany(
            "insert into presses_15m (bucket, questionnaire, spot, presses, question, answer) "
            "values (time_bucket('15 minutes', $1::timestamptz), 0, $2, 1, $3, $4) "
            "on conflict (spot, bucket, questionnaire, question, answer) "
            "do update set presses = presses_15m.presses + 1",
            [(when, spot, question, answer) for when, (_, answer) in zip(at, touches, strict=True)],
        )
        for bucket in {w.replace(minute=w.minute // 15 * 15, second=0, microsecond=0) for w in at}:
            await world.owner.execute(
                "insert into rollup_15m (bucket, observed, spot, resolution_s) "
                "values ($1, (1::bigint << 60) - 1, $2, 60) on conflict do nothing",
                *(bucket, spot),
            )
            await world.dirty(spot, bucket)


async def derive(world: World) -> None:
    """Work in all that is dirty, and filter it."""
    await world.derive()
    while await responses.refresh(world.maint):
        pass
