"""Why a device waits: one case for each reason, and what comes before what."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.firmware.joiners import Outlook
from server.firmware.life import Execution
from server.firmware.life import State as Stage
from server.firmware.policy import Caps, Policy
from server.firmware.waves import State, Wave, WaveKind, WaveState
from server.firmware.why import Facts, Freeze, Reason, why
from server.firmware.windows import Night, NoWindow

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=9)
OPEN = Wave(1, state=WaveState.OPEN, size=2)
NEXT = Wave(2, size=5)
TONIGHT = Night(((int(LATER.timestamp()), int(LATER.timestamp()) + 7200),))
ON = Night(((int(NOW.timestamp()), int(LATER.timestamp())),))


def facts(**more: Any) -> Facts:
    """Return a device whose turn it is."""
    known = Facts(
        now=NOW,
        rollout=State.RUNNING,
        since=NOW,
        policy=Policy(),
        execution=Execution(due_at=NOW),
        wave=1,
        waves=(OPEN, NEXT),
        current=OPEN,
        bytes=1000,
    )
    return replace(known, **more)


def at(stage: Stage, **more: Any) -> Execution:
    """Return an execution that has got so far."""
    return Execution(stage, offered_at=NOW, phase_at=NOW, **more)


def preparing(state: State, **more: Any) -> dict[str, Any]:
    return {"rollout": state, "execution": None, "waves": (), "current": None, **more}


CASES: list[tuple[Reason, dict[str, Any], datetime | None, str]] = [
    (Reason.NOT_IN_IT, {"execution": None, "wave": None}, None, "not in this rollout"),
    (
        Reason.NOT_IN_IT,
        {"execution": None, "wave": None, "outlook": Outlook(False, "its filter misses it")},
        None,
        "not in this rollout: its filter misses it",
    ),
    (Reason.JOINS, {"left_out": "it never said", "outlook": Outlook(True, "")}, None, "next look"),
    (
        Reason.JOINS,
        {"execution": None, "wave": None, "outlook": Outlook(True, ""), "rollout": State.PAUSED},
        None,
        "once the rollout, which is paused, goes on",
    ),
    (
        Reason.EXCLUDED,
        {"left_out": "it never said", "outlook": Outlook(False, "it runs all of it")},
        None,
        "left out: it runs all of it",
    ),
    (Reason.EXCLUDED, {"left_out": "it runs all of it"}, None, "left out: it runs all of it"),
    (Reason.EXCLUDED, {"execution": at(Stage.EXCLUDED, code="already there")}, None, "already"),
    (Reason.CONFIRMED, {"execution": at(Stage.CONFIRMED, ended_at=NOW)}, None, "12:00 UTC"),
    (
        Reason.ENDED,
        {
            "execution": at(
                Stage.FAILED, ended_at=NOW, attempt=3, kind="network", code="unreachable"
            )
        },
        None,
        "failed at 2026-04-01 12:00 UTC, in attempt 3: network unreachable",
    ),
    (Reason.NOT_APPROVED, preparing(State.AWAITING_APPROVAL), None, "nobody has approved"),
    (Reason.SCHEDULED, preparing(State.SCHEDULED, starts_at=LATER), LATER, "begins 2026-04-01 21"),
    (Reason.PAUSED, {"rollout": State.PAUSED, "said": "lunch"}, None, "12:00 UTC: lunch"),
    (Reason.HALTED, {"rollout": State.HALTED, "said": "fail_abs"}, None, "halted"),
    (Reason.WITHDRAWN, {"rollout": State.REVERTING}, None, "reverting"),
    (Reason.WAVE, {"wave": 2}, None, "wave 2; wave 1 is open"),
    (
        Reason.RETRY,
        {
            "execution": Execution(
                attempt=2, attempted=True, due_at=LATER, kind="network", code="slow"
            )
        },
        LATER,
        "Attempt 1 failed (network slow); the next is from 2026-04-01 21:00",
    ),
    (
        Reason.DEFERRED,
        {"execution": at(Stage.WAITING_IDLE, deferred_at=NOW)},
        NOW + timedelta(days=1),
        "left alone",
    ),
    (Reason.LAPSED, {"execution": Execution(due_at=LATER, offered_at=NOW)}, LATER, "offered again"),
    (Reason.AWAY, {"here": False, "away_since": NOW}, None, "offline, last heard of at 2026-04-01"),
    (Reason.NEVER_HERE, {"here": False}, None, "never connected"),
    (Reason.RATE, {"offers": 0}, None, "no offer left"),
    (Reason.IN_FLIGHT, {"flying": 50}, None, "50 devices are on their way, 50 at once"),
    (Reason.DOOR, {"at_door": ("dc-other",)}, None, "dc-other at the same entrance"),
    (Reason.SITE, {"at_site": ("dc-other",)}, None, "dc-other at the same site"),
    (
        Reason.REGION,
        {"policy": Policy(caps=Caps(region=3)), "in_region": 3},
        None,
        "3 devices in its region",
    ),
    (Reason.NEXT, {}, None, "offered at the next look"),
    (Reason.OFFERED, {"execution": at(Stage.OFFERED, due_at=LATER)}, LATER, "not answered yet"),
    (Reason.FETCHING, {"execution": at(Stage.DOWNLOADING, bytes=250)}, None, "250 of 1000 bytes"),
    (Reason.READY, {"execution": at(Stage.READY)}, None, "fetched and checked"),
    (
        Reason.WINDOW,
        {"execution": at(Stage.WAITING_WINDOW), "night": TONIGHT},
        LATER,
        "next window, from 2026-04-01 21:00 UTC",
    ),
    (Reason.IDLE, {"execution": at(Stage.WAITING_IDLE)}, NOW + timedelta(days=1), "nobody uses"),
    (Reason.INSTALLING, {"execution": at(Stage.REBOOTING)}, None, "installs, since"),
    (Reason.TRIAL, {"execution": at(Stage.TRIAL)}, None, "tries the new version"),
]


@pytest.mark.parametrize(
    ("reason", "known", "until", "said"),
    CASES,
    ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)],
)
def test_each_reason_is_told_with_its_end(
    reason: Reason, known: dict[str, Any], until: datetime | None, said: str
) -> None:
    first = why(facts(**known))[0]
    assert (first.reason, first.until) == (reason, until)
    assert said in first.text


BEHIND: list[tuple[Reason, dict[str, Any], datetime | None]] = [
    (Reason.FROZEN, {"frozen": Freeze("freeze-a", "Black Friday", LATER)}, LATER),
    (Reason.WINDOW, {"night": TONIGHT}, LATER),
    (Reason.NO_WINDOW, {"night": Night((), NoWindow.ALWAYS_OPEN)}, None),
]


@pytest.mark.parametrize(("reason", "known", "until"), BEHIND)
def test_what_holds_back_installing_follows_what_holds_back_the_offer(
    reason: Reason, known: dict[str, Any], until: datetime | None
) -> None:
    last = why(facts(**known))[-1]
    assert (last.reason, last.until) == (reason, until)
    installing = why(facts(**known, execution=at(Stage.INSTALLING)))
    assert [each.reason for each in installing] == [Reason.INSTALLING]


def test_every_reason_has_a_case() -> None:
    assert {case[0] for case in CASES} | {case[0] for case in BEHIND} == set(Reason)


def test_all_that_holds_is_told_in_the_order_in_which_it_is_asked() -> None:
    found = why(facts(wave=2, here=False, offers=0, at_site=("dc-other",), night=TONIGHT))
    assert [each.reason for each in found] == [
        *(Reason.WAVE, Reason.NEVER_HERE, Reason.RATE, Reason.SITE, Reason.WINDOW)
    ]


def test_a_wave_says_when_the_one_before_it_has_soaked() -> None:
    soaking = replace(OPEN, state=WaveState.SOAKING, met_at=NOW)
    found = why(facts(wave=2, waves=(soaking, NEXT), current=soaking))[0]
    assert found.until == NOW + timedelta(days=1)
    after = Wave(3, WaveKind.TAIL)
    found = why(facts(wave=3, waves=(soaking, NEXT, after), current=soaking))[0]
    assert (found.reason, found.until) == (Reason.WAVE, None)


def test_an_open_window_and_an_overridden_freeze_hold_nobody_back() -> None:
    frozen = Freeze("freeze-a", "Black Friday", LATER)
    policy = Policy(override_freezes=True)
    found = why(facts(policy=policy, frozen=frozen, night=ON))
    assert [each.reason for each in found] == [Reason.NEXT]
