"""What a phone did is done once, however often it is sent: by (user, the phone's own number)."""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg

from server.provisioning.refusals import refused

_LOCK = 0x7068_6F6E  # "phon"


async def once(
    connection: asyncpg.Connection,
    do: Callable[[], Awaitable[dict[str, str]]],
    *,
    user_id: int,
    act_ref: str,
    act: str,
    organisation: int,
    now: datetime,
) -> dict[str, str]:
    """Return what `do` answers, or what it answered when this act came first.

    A refusal is not remembered: sent again, the act is judged again. Raises RefusedError
    (`act_differs`) if the number was used for another act. Within the caller's transaction.
    """
    await connection.execute(
        "select pg_advisory_xact_lock($1, hashtext($2))", _LOCK, f"{user_id} {act_ref}"
    )
    done = await connection.fetchrow(
        "select act, answer from phone_acts where user_id = $1 and act_ref = $2", user_id, act_ref
    )
    if done is not None:
        if done["act"] != act:
            raise refused("act_differs")
        answer: dict[str, str] = json.loads(done["answer"])
        return answer
    answer = await do()
    await connection.execute(
        "insert into phone_acts (user_id, act_ref, organisation_id, act, done_at, answer) "
        "values ($1, $2, $3, $4, $5, $6)",
        user_id,
        act_ref,
        organisation,
        act,
        now,
        json.dumps(answer),
    )
    return answer
