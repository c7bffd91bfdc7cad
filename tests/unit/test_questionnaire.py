"""Questionnaires, plans and envelopes: one form, one hash, and nothing that no page could show."""

import copy
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kiosk import BUILT_IN
from protocol.content import ContentError, Fault, canonical
from protocol.message import MessageError, parse
from protocol.plan import Envelope, Plan, Shown, opened, read_envelope, read_plan, shown
from protocol.questionnaire import MAX_BYTES, Kind, make, read
from server.feedback.indices import Kind as ServerKind

VECTORS = Path(__file__).parents[1] / "vectors" / "questionnaires"
TEXT = {"sv": "Hur?", "en": "How?"}
WHOLE: dict[str, Any] = {
    "format": 1,
    "languages": ["sv", "en"],
    "title": TEXT,
    "questions": [
        {"kind": "smiley4", "text": TEXT},
        {
            "kind": "choice",
            "text": TEXT,
            "options": [TEXT, TEXT, TEXT],
            "after": {"question": 0, "answers": [2, 3]},
        },
        {"kind": "nps", "text": TEXT, "low": TEXT, "high": TEXT},
    ],
}


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_a_released_questionnaire_keeps_its_bytes_and_its_hash(path: Path) -> None:
    content = path.read_bytes()
    found = read(content)
    assert found.content == content == canonical(json.loads(content))
    assert found.hash.hex() == path.with_suffix(".hash").read_text().strip()
    assert found.hash == hashlib.sha256(content).digest()[:8]


def test_there_are_vectors_of_every_kind() -> None:
    kinds = {
        question.kind
        for path in VECTORS.glob("*.json")
        for question in read(path.read_bytes()).questions
    }
    assert kinds == set(Kind)
    assert (VECTORS / "built-in.json").read_bytes() == BUILT_IN.content


def test_server_and_wire_have_the_same_kinds() -> None:
    assert [*map(str, ServerKind)] == [*map(str, Kind)]


def test_an_order_of_keys_makes_no_other_questionnaire() -> None:
    turned = dict(reversed(WHOLE.items()))
    assert make(turned) == make(WHOLE)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(WHOLE).encode(),
        canonical(WHOLE) + b"\n",
        canonical(WHOLE).replace(b"?", b"\\u003f", 1),
    ],
)
def test_another_form_of_the_same_is_refused(content: bytes) -> None:
    with pytest.raises(ContentError) as refused:
        read(content)
    assert refused.value.fault is Fault.NOT_CANONICAL


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(whole: dict[str, Any]) -> None:
        at: Any = whole
        for key in path[:-1]:
            at = at[key]
        if value is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "fault", "where"),
    [
        (put("format", value=2), Fault.UNKNOWN_FORMAT, "format"),
        (put("format", value=True), Fault.UNKNOWN_FORMAT, "format"),
        (put("colour", value="red"), Fault.BAD_FIELD, "colour"),
        (put("title", value=...), Fault.BAD_FIELD, "title"),
        (put("languages", value=["sv", "fi"]), Fault.BAD_FIELD, "languages"),
        (put("languages", value=[]), Fault.BAD_FIELD, "languages"),
        (put("languages", value=["sv", "sv"]), Fault.BAD_FIELD, "languages"),
        (put("questions", value=[]), Fault.BAD_FIELD, "questions"),
        (put("questions", 0, "kind", value="stars"), Fault.BAD_FIELD, "questions[0].kind"),
        (put("questions", 0, "text", "en", value=...), Fault.BAD_FIELD, "questions[0].text.en"),
        (put("questions", 0, "text", "da", value="Hvad?"), Fault.BAD_FIELD, "questions[0].text.da"),
        (put("questions", 0, "text", "en", value=""), Fault.BAD_TEXT, "questions[0].text.en"),
        (put("questions", 0, "text", "en", value="a\nb"), Fault.BAD_TEXT, "questions[0].text.en"),
        (
            put("questions", 0, "text", "en", value="x" * 301),
            Fault.BAD_TEXT,
            "questions[0].text.en",
        ),
        (put("questions", 0, "text", "en", value="{name}"), Fault.BAD_TEXT, "questions[0].text.en"),
        (
            put("questions", 0, "options", value=[TEXT, TEXT]),
            Fault.BAD_FIELD,
            "questions[0].options",
        ),
        (put("questions", 1, "options", value=[TEXT]), Fault.BAD_FIELD, "questions[1].options"),
        (
            put("questions", 1, "options", value=[TEXT] * 10),
            Fault.BAD_FIELD,
            "questions[1].options",
        ),
        (put("questions", 2, "high", value=...), Fault.BAD_FIELD, "questions[2]"),
        (put("questions", 1, "after", "question", value=1), Fault.BAD_FLOW, "questions[1].after"),
        (put("questions", 1, "after", "answers", value=[4]), Fault.BAD_FLOW, "questions[1].after"),
        (
            put("questions", 1, "after", "answers", value=[3, 2]),
            Fault.BAD_FLOW,
            "questions[1].after",
        ),
    ],
)
def test_what_no_page_could_show_is_refused_where_it_is(
    change: Callable[[dict[str, Any]], None], fault: Fault, where: str
) -> None:
    whole = copy.deepcopy(WHOLE)
    change(whole)
    with pytest.raises(ContentError) as refused:
        make(whole)
    assert (refused.value.fault, refused.value.where) == (fault, where)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", Fault.NOT_JSON),
        (b"[" * 20_000, Fault.NOT_JSON),
        (b"\xff", Fault.NOT_JSON),
        (b'{"format":1.0}', Fault.NOT_JSON),
        (b"[]", Fault.BAD_FIELD),
        (b" " * (MAX_BYTES + 1), Fault.TOO_LARGE),
    ],
)
def test_what_is_no_questionnaire_at_all_is_refused(content: bytes, fault: Fault) -> None:
    with pytest.raises(ContentError) as refused:
        read(content)
    assert refused.value.fault is fault


@given(st.binary(max_size=200) | st.recursive(st.integers() | st.text(), st.lists).map(canonical))
def test_noise_is_refused_and_never_anything_else(content: bytes) -> None:
    for reader in (read, read_plan, read_envelope):
        with pytest.raises(ContentError):
            reader(content)


# -- messages --------------------------------------------------------------------------------------

MESSAGES = json.loads((VECTORS.parent / "messages.json").read_text())


@pytest.mark.parametrize("text", [each["text"] for each in MESSAGES])
def test_a_message_that_can_be_shown_is_taken(text: str) -> None:
    assert parse(text, known=frozenset({"site", "n"})) or text == ""


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{}", "{n", "{other}", "{n, date}", "{n, plural, one {a}}",
     "{n, select, =1 {a} other {b}}",
     "{n, plural, some {a} other {b}}", "{n, plural, other {a} other {b}}", "{n, plural, other {a}",
     "{n, plural, other {" * 5 + "}" * 10],
)  # fmt: skip
def test_a_message_that_no_page_could_show_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse(text, known=frozenset({"site", "n"}))


@given(st.text(alphabet="{}'#, naplurselcothx=1", max_size=60))
def test_any_text_is_a_message_or_refused(text: str) -> None:
    try:
        parse(text, known=frozenset({"n"}))
    except MessageError:
        return


# -- plans -----------------------------------------------------------------------------------------

DIGEST = "0" * 64


@st.composite
def entries(draw: st.DrawFn) -> Shown:
    days = st.dates(date(2026, 1, 1), date(2026, 1, 20))
    since, until = sorted((draw(days), draw(days)))
    opens, closes = draw(
        st.tuples(st.integers(0, 1439), st.integers(1, 1440)).filter(
            lambda pair: pair[0] != pair[1]
        )
    )
    return shown(
        DIGEST,
        since=draw(st.sampled_from([None, since])),
        until=draw(st.sampled_from([None, until])),
        weekdays=tuple(sorted(draw(st.sets(st.integers(1, 7))))),
        hours=draw(st.sampled_from([None, (opens, closes)])),
    )


@given(st.lists(entries(), max_size=4))
def test_a_plan_is_read_as_it_was_written(show: list[Shown]) -> None:
    plan = Plan("fk-1", "Söder", "Europe/Stockholm", tuple(show))
    assert read_plan(plan.content()) == plan


@given(entries(), st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 21)))  # noqa: DTZ001
def test_an_entry_is_in_force_in_its_hours_of_the_days_that_it_names(
    entry: Shown, local: datetime
) -> None:
    """By plain enumeration: each day that it names has one stretch of minutes."""
    opens, closes = entry.hours or (0, 1440)
    stretches = []
    for offset in range(-2, 3):
        day = local.date() + timedelta(days=offset)
        named = not entry.weekdays or day.isoweekday() in entry.weekdays
        late = entry.until is not None and day > entry.until
        early = entry.since is not None and day < entry.since
        if named and not late and not early:
            midnight = datetime.combine(day, datetime.min.time())
            length = closes - opens if opens < closes else closes - opens + 1440
            begin = midnight + timedelta(minutes=opens)
            stretches.append((begin, begin + timedelta(minutes=length)))
    minute = local.replace(second=0, microsecond=0)
    assert entry.in_force(local) == any(begin <= minute < end for begin, end in stretches)


@pytest.mark.parametrize(
    "schedule",
    [
        {"since": date(2026, 2, 1), "until": date(2026, 1, 1)},
        {"weekdays": (0,)},
        {"weekdays": (2, 1)},
        {"weekdays": (1, 1)},
        {"hours": (-1, 60)},
        {"hours": (60, 60)},
        {"hours": (60, 1441)},
    ],
)
def test_a_schedule_that_is_never_or_nothing_is_refused(schedule: dict[str, Any]) -> None:
    with pytest.raises(ContentError) as refused:
        shown(DIGEST, **schedule)
    assert refused.value.fault is Fault.BAD_SCHEDULE


def test_an_envelope_holds_what_its_plan_names_and_nothing_else() -> None:
    first, second = make(WHOLE), make(WHOLE | {"thanks": TEXT})
    plan = Plan("fk-1", "A", "UTC", (Shown(first.digest),))

    def sent(*contents: bytes) -> Envelope:
        return read_envelope(Envelope(plan.content(), b"\x01", "pem", contents).content())

    assert opened(sent(first.content), device="fk-1") == (plan, {first.digest: first})
    for contents in ((), (second.content,), (first.content, second.content)):
        with pytest.raises(ContentError) as refused:
            opened(sent(*contents), device="fk-1")
        assert refused.value.fault is Fault.WRONG_DIGEST
    with pytest.raises(ContentError) as refused:
        opened(sent(first.content), device="fk-2")
    assert refused.value.fault is Fault.WRONG_DEVICE


def test_a_plan_without_times_needs_no_clock() -> None:
    assert Shown(DIGEST).always
    assert Shown(DIGEST).in_force(datetime.now(UTC))
    assert not Shown(DIGEST, weekdays=(1,)).always
