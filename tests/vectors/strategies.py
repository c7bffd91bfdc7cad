"""Hypothesis strategies: every content of the protocol, frames of it, and frames gone wrong."""

import random
import struct

from hypothesis import strategies as st

from ext.layout import Place
from protocol.counter import INTERVALS, MAX_CELLS, MAX_COUNT, Counts, Line, cells_of
from protocol.frame import HEADER_BYTES, MAX_OFFSET_MS, MAX_SPAN_MS, Quality, Span
from protocol.gap import Cause, Gap
from protocol.health import Metrics
from protocol.kiosk import Press, Presses
from protocol.session import Answer, BootCursor, HeldBoot, Hello, Receipt
from tests.vectors.cases import Content, encode_content, refit

u8 = st.integers(0, 0xFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
_SPAN_MS = st.one_of(
    st.integers(1, 400_000), st.integers(1, 7_200_000), st.integers(1, MAX_SPAN_MS)
)
_UTC_MS = st.one_of(
    st.integers(1_760_000_000_000, 1_760_100_000_000),
    st.integers(-10_000_000, 4_200_000_000_000),
    st.sampled_from([946_684_800_000, 946_684_799_999, 4_102_444_800_000]),
)


@st.composite
def spans(draw: st.DrawFn, span_ms: st.SearchStrategy[int] = _SPAN_MS) -> Span:
    """A span: mostly of this decade, at times undated, of another century, or without length."""
    quality = draw(
        st.sampled_from([Quality.SYNCED, Quality.SYNCED, Quality.ESTIMATED, Quality.NONE])
    )
    start = draw(st.one_of(st.integers(0, 100_000_000), st.integers(0, 1 << 44)))
    offset = max(-MAX_OFFSET_MS, min(MAX_OFFSET_MS, draw(_UTC_MS) - start))
    return Span(start, draw(span_ms), offset, quality)


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    """Readings of one to four lines, at every interval and width."""
    interval = draw(st.one_of(st.just(60), st.sampled_from(sorted(INTERVALS))))
    longest = min(MAX_SPAN_MS, (MAX_CELLS - 1) * interval * 1000)
    usual = min(longest, 90 * interval * 1000)
    span = draw(spans(st.one_of(st.integers(1, usual), st.integers(1, longest))))
    cells = cells_of(span, interval)
    numbers = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    lines = tuple(draw(_lines(number, cells)) for number in sorted(numbers))
    return Counts(span, interval, lines)


@st.composite
def _lines(draw: st.DrawFn, number: int, cells: int) -> Line:
    """A line whose largest possible value selects its width; drawn by seed, to stay quick."""
    top = draw(st.sampled_from([0, 1, 15, 16, 255, 256, MAX_COUNT]))
    rng = random.Random(draw(u32))
    values = tuple(rng.choice((0, top, rng.randint(0, top))) for _ in range(2 * cells))
    return Line(number, draw(u32), draw(u32), values)


@st.composite
def answer_totals(draw: st.DrawFn) -> tuple[tuple[int, int, int], ...]:
    """Totals in order of (question, answer)."""
    keys = draw(st.lists(st.tuples(u8, u8), max_size=12, unique=True))
    return tuple((*key, draw(u32)) for key in sorted(keys))


@st.composite
def presses(draw: st.DrawFn) -> Presses:
    """Presses in order of time and visit, runs of equal ones among them, up to the very end."""
    span = draw(spans(st.one_of(st.integers(0, 400_000), st.integers(0, 20_000_000))))
    left, visit, at_ds = span.span_ms // 100, draw(st.integers(0, 300)), 0
    found: list[Press] = []
    for _ in range(draw(st.integers(0, 12))):
        repeat, step = draw(st.integers(1, 6)), draw(st.integers(0, 20))
        at_ds += draw(st.one_of(st.integers(0, 300), st.just(left)))
        visit += draw(st.one_of(st.just(0), st.just(1), st.integers(0, 1000)))
        question, answer, source = draw(st.integers(0, 3)), draw(u8), draw(st.integers(0, 2))
        for _ in range(repeat):
            if at_ds > left:
                break
            found.append(Press(at_ds, visit, question, answer, source))
            at_ds += step
    return Presses(
        span, draw(st.binary(min_size=8, max_size=8)), draw(answer_totals()), tuple(found)
    )


_NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,47}", fullmatch=True)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.builds(Metrics, spans(), st.dictionaries(_NAMES, _FINITE, max_size=64))


@st.composite
def gaps(draw: st.DrawFn) -> Gap:
    """A gap whose range any sequence number below 2^31 may begin."""
    numbers = sorted(draw(st.sets(st.integers(0, 3))))
    lines = tuple((number, draw(u32), draw(u32)) for number in numbers)
    last = draw(st.integers(1 << 31, 0xFFFFFFFF))
    return Gap(
        draw(spans()), last, draw(st.sampled_from(list(Cause))), lines, draw(answer_totals())
    )


@st.composite
def _held_boots(draw: st.DrawFn) -> HeldBoot:
    first, after_last = sorted((draw(u32), draw(u32)))
    offset = draw(st.integers(-MAX_OFFSET_MS, MAX_OFFSET_MS))
    quality = draw(st.sampled_from(list(Quality)))
    return HeldBoot(draw(u64), draw(u32), first, after_last, quality, offset)


hellos = st.builds(
    Hello,
    u64,
    st.lists(u8, max_size=8).map(tuple),
    st.text(st.characters(codec="ascii"), max_size=32),
    spans(),
    st.lists(_held_boots(), max_size=5).map(tuple),
)
receipts = st.builds(Receipt, u64, u32, u32, u64, u64)
answers = st.builds(
    Answer,
    u64,
    u64,
    u64,
    u8,
    st.lists(st.builds(BootCursor, u64, u32, u32, st.booleans()), max_size=5).map(tuple),
)
contents: st.SearchStrategy[Content] = st.one_of(
    counts(), counts(), presses(), presses(), metrics, gaps(), hellos, receipts, answers
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A good frame of any kind."""
    return encode_content(
        draw(contents), boot_id=draw(u64), seq=draw(st.integers(0, 1 << 31)), ordinal=draw(u32)
    )


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A frame gone wrong: bytes changed, cut, added; mostly with checksums made right again."""
    frame = draw(frames())
    for _ in range(draw(st.integers(1, 4))):
        frame = _mutate(draw, frame)
    if draw(st.integers(0, 4)) and len(frame) >= HEADER_BYTES:
        frame = refit(frame)
    return frame


def _mutate(draw: st.DrawFn, frame: bytes) -> bytes:
    at = draw(st.integers(0, max(0, len(frame) - 1)))
    if draw(st.booleans()):  # where most is decided: section heads and their first fields
        at = min(at, draw(st.integers(0, 90)))
    match draw(st.integers(0, 4)):
        case 0:
            return frame[:at] + draw(st.binary(min_size=1, max_size=4)) + frame[at + 1 :]
        case 1:
            return (
                frame[:at] + bytes([frame[at] ^ 1 << draw(st.integers(0, 7))]) + frame[at + 1 :]
                if frame
                else frame
            )
        case 2:
            return frame[:at]
        case 3:
            return frame + draw(st.binary(max_size=9))
        case _:
            value = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x8000]))
            return frame[:at] + struct.pack("<H", value) + frame[at + 2 :]


@st.composite
def shuffled(draw: st.DrawFn) -> bytes:
    """Sections of two frames in another order: left out, doubled, unknown ones between."""
    frame = draw(frames())
    pool = _split(frame[HEADER_BYTES:]) + _split(draw(frames())[HEADER_BYTES:])
    unknown = struct.pack("<BBH", 200, draw(st.integers(0, 1)), 2) + b"??"
    picked = draw(st.lists(st.sampled_from([*pool, unknown]), max_size=5))
    return refit(frame[:HEADER_BYTES] + b"".join(picked))


def _split(body: bytes) -> list[bytes]:
    parts = []
    while body:
        end = 4 + int.from_bytes(body[2:4], "little")
        parts.append(body[:end])
        body = body[end:]
    return parts


any_frame = st.one_of(frames(), broken(), shuffled(), st.binary(max_size=200))


@st.composite
def places(draw: st.DrawFn, span: Span | None) -> Place:
    """A place around `span`: all of time, or with edges at and beside the span's own."""
    edges = [0, 1 << 60]
    if span is not None:
        start = span.utc_ms
        for edge in (start, start // 60_000 * 60_000, start + span.span_ms):
            edges += [edge - 1, edge, edge + 1]
    from_ms = draw(st.one_of(st.just(0), st.sampled_from(edges)))
    until_ms = draw(st.one_of(st.just(1 << 60), st.sampled_from(edges)))
    spot = draw(st.sampled_from([0, 1, 77, (1 << 31) - 1]))
    return Place(draw(st.integers(0, (1 << 31) - 1)), spot, from_ms, until_ms)
