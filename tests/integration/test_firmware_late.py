"""Late words at the real listener, and who was cut off with what it was assigned."""

import json
from datetime import timedelta

import msgspec
import pytest

from protocol.update import Class, Phase, read_answer
from server.firmware.assignments import LIFE
from server.firmware.policy import Caps
from tests.integration.firmware_world import AT_ANY_TIME, Scripted, Updates, on_trial, step, told
from tests.integration.firmware_world import updates as updates

pytestmark = pytest.mark.services
MANY_AT_A_SITE = msgspec.structs.replace(AT_ANY_TIME, caps=Caps(site=9))


async def test_a_report_from_before_the_confirmation_takes_it_back_never_and_one_after_does(
    updates: Updates,
) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    old = dict(device.components)
    await told(device)
    late = device.report()  # on its way, while all of this happens
    execution, trial = await on_trial(updates, device, release)
    await device.says(step(execution, 8, Phase.CONFIRMED))
    kept = await updates.kept(device)
    for _ in range(2):  # and once more
        _, body = await device.post(device.signed(late))
        stale = read_answer(body)
        assert (stale.again_s, (await updates.execution(device))["state"]) == (1, "confirmed")
        assert (await updates.kept(device))["components"] == kept["components"]
        device.answers = stale.nonce
    await device.says()
    assert (await updates.execution(device))["state"] == "confirmed"
    answer = await device.says(step(execution, 9, Phase.REVERTED), components=old)  # it fell back
    assert answer.heard == {trial: 9}
    found = await updates.execution(device)
    assert (found["state"], found["seq"]) == ("reverted by device", 9)
    total = await updates.owner.fetchval("select total from waves where number = 1")
    assert json.loads(total)["failed"] == 1


async def test_a_device_that_fell_back_silently_is_seen_by_its_next_fresh_report(
    updates: Updates,
) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    old = dict(device.components)
    execution, _ = await on_trial(updates, device, release)
    await device.says(step(execution, 8, Phase.CONFIRMED))
    device.components, device.answers = old, "0" * 32  # our last answer was lost
    answer = await device.says()
    assert (answer.again_s, (await updates.execution(device))["state"]) == (1, "confirmed")
    await device.says()
    found = await updates.execution(device)
    assert (found["state"], found["code"]) == ("reverted by device", "version")


# -- one entrance ----------------------------------------------------------------------------------


async def neighbours(updates: Updates) -> tuple[Scripted, Scripted]:
    """Return two devices of one entrance, the first of which was assigned what both are to get."""
    first, second = await updates.device(), await updates.device()
    await updates.one_door(first, second)
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(first, second), policy=MANY_AT_A_SITE)
    assert (await told(first)).assignment is not None
    assert (await told(second)).assignment is None
    return first, second


CUT_OFF = (
    "state = 'planned', due_at = now() + interval '1 h'",  # its offer lapsed
    "state = 'planned', attempt = 2, offered_at = null, due_at = now() + interval '1 h'",
    "state = 'lost', ended_at = now()",
    "state = 'cancelled', ended_at = now()",
)


@pytest.mark.parametrize("became", CUT_OFF)
async def test_who_was_cut_off_keeps_its_entrance_until_what_it_was_assigned_has_ended(
    updates: Updates, became: str
) -> None:
    first, second = await neighbours(updates)
    execution = await updates.execution(first)
    await updates.owner.execute(f"update executions set {became} where id = $1", execution["id"])
    for ahead in (timedelta(0), LIFE - timedelta(minutes=5)):
        updates.ahead = ahead
        assert (await second.says()).assignment is None
    updates.ahead = LIFE + timedelta(minutes=5)
    assert (await second.says()).assignment is not None


async def test_who_says_that_it_has_given_up_leaves_its_entrance_at_once(updates: Updates) -> None:
    first, second = await neighbours(updates)
    execution = await updates.execution(first)
    await first.says(step(execution, 1, Phase.ACCEPTED))
    await updates.owner.execute(
        "update executions set state = 'lost', ended_at = now() where id = $1", execution["id"]
    )
    assert (await second.says()).assignment is None
    answer = await first.says()
    assert answer.cancel == (execution["ref"],)
    assert (await second.says()).assignment is None  # it may not have heard that
    await first.says(step(execution, 2, Phase.FAILED, code="cancelled", kind=Class.REFUSED))
    assert (await second.says()).assignment is not None


async def test_who_never_began_leaves_its_entrance_once_it_has_heard_that_it_is_over(
    updates: Updates,
) -> None:
    first, second = await neighbours(updates)
    execution = await updates.execution(first)
    await updates.owner.execute(
        "update executions set state = 'superseded', ended_at = now() where id = $1",
        execution["id"],
    )
    assert (await first.says()).cancel == (execution["ref"],)
    assert (await second.says()).assignment is None
    await first.says()  # it has our answer
    assert (await second.says()).assignment is not None


async def test_a_device_is_not_kept_from_its_own_entrance(updates: Updates) -> None:
    first, _ = await neighbours(updates)
    execution = await updates.execution(first)
    await updates.owner.execute(
        "update executions set state = 'planned', offered_at = null where id = $1", execution["id"]
    )
    assert (await first.says()).assignment is not None
