"""Why a device is called what it is called is one sentence for every state."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from server.health.platform import Cause
from server.health.presence import Facts, Kind, Presence, Said, Session, State, heard, judged
from server.health.why import why

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MADE = Presence(since=NOON - timedelta(days=3))


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_every_state_has_a_sentence_with_what_it_was_judged_by() -> None:
    greeted = heard(MADE, Said(Kind.HELLO, 1, at(0)))
    healthy = judged(greeted, Facts(at(600), at(540)), watermark=at(700))
    lost = heard(healthy, Said(Kind.WILL, 1, at(800)))
    left = heard(healthy, Said(Kind.BYE, 1, at(800), "update", at(1_400)))
    for presence, words in (
        (MADE, "has never connected"),
        (healthy, "heartbeat 2 minutes ago, counts up to 2026-03-02 12:09:00 UTC"),
        (judged(healthy, Facts(at(0), at(700)), watermark=at(9_000)), "no health frame has come"),
        (
            judged(
                healthy, Facts(at(9_000), at(0), None, lambda a, b: [(a, b)]), watermark=at(9_000)
            ),
            "nothing that it counted has come since 2026-03-02 12:09:00 UTC; 90 minutes of opening",
        ),
        (judged(left, Facts(), watermark=at(810)), "(update); it is missed from 2026-03-02 12:25"),
        (judged(left, Facts(), watermark=at(9_000)), "has not come back in time"),
        (judged(lost, Facts(), watermark=at(810)), "was lost at 2026-03-02 12:13:20 UTC without"),
        (
            judged(replace(lost, reason="failed"), Facts(), watermark=at(810)),
            "Its agent ended by a fault",
        ),
        (
            judged(replace(lost, reason="not admitted"), Facts(), watermark=at(810)),
            "it is not admitted",
        ),
        (
            replace(healthy, state=State.OFFLINE, session=Session.OPEN, since=at(900)),
            "until that was started again at 2026-03-02 12:15:00 UTC",
        ),
    ):
        sentence = why(presence, now=at(720))
        assert words in sentence, sentence
        assert sentence.endswith(".")


def test_while_nobody_can_tell_the_sentence_says_so_first() -> None:
    for cause in Cause:
        sentence = why(MADE, now=at(0), unknown=(cause, at(-60)))
        assert sentence.startswith("Nobody can tell just now: ")
        assert "2026-03-02 11:59:00 UTC" in sentence
        assert "has never connected" in sentence
