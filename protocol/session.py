"""What is said about the sequence: hello (device), answer and receipt (server).

- A receipt follows each commit: frames below `next_seq` of that boot are stored, and `digest`
  is the last one's. The agent forgets only what matches.
- A hello lists the boots an agent still holds; the answer, matched by its nonce, states each
  boot's `next_seq`. Only such an answer may move an agent's mark back (a restored database).
- The name in a hello is the agent's. Two are kept for what is no greeting and gets no answer: the
  will, which the broker sends in the agent's stead, and a goodbye (`Goodbye`).
"""

import re
import struct
from dataclasses import dataclass

from protocol.frame import (
    MAX_OFFSET_MS,
    FrameError,
    Header,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    decode_time,
    encode,
    encode_time,
    need,
    read_body,
    read_header,
    section,
)

MAX_BOOTS = 512  # boots an agent may still hold; more fold into gap frames
MAX_VERSIONS = 8
MAX_AGENT = 32

WILL = "will"
FAILED = "failed"  # the reason of a goodbye that was not meant: to be taken as a will
MAX_BACK_S = 30 * 86_400
_BYE = re.compile(r"bye(?: ([a-z][a-z-]{0,15})(?: ([0-9]{1,7}))?)?")

_HELLO = struct.Struct("<QBB")
_HELLO_BOOT = struct.Struct("<QIIIBq")
_RECEIPT = struct.Struct("<QQI")
_ANSWER = struct.Struct("<QQQBH")
_ANSWER_BOOT = struct.Struct("<QIIB")


@dataclass(frozen=True, slots=True)
class HeldBoot:
    """A boot in the agent's outbox: it holds `first_seq` up to, not including, `next_seq`.

    `offset_ms` (UTC minus monotonic) is the boot's best; `quality` NONE if it never knew.
    """

    boot_id: int
    ordinal: int
    first_seq: int
    next_seq: int
    quality: Quality
    offset_ms: int


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent's greeting after each connect, and whenever a receipt does not fit."""

    nonce: int
    versions: tuple[int, ...]
    agent: str
    span: Span
    boots: tuple[HeldBoot, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why an agent ends its connection, and in how many seconds it means to be back (0: unknown).

    Raises ValueError if it cannot be said on the wire.
    """

    reason: str = ""
    back_s: int = 0

    def __post_init__(self) -> None:
        """Refuse what the name could not hold, or nobody would believe."""
        if not 0 <= self.back_s <= MAX_BACK_S:
            raise ValueError(f"an agent is back within {MAX_BACK_S} s, got {self.back_s}")
        if (self.back_s and not self.reason) or not _BYE.fullmatch(self.name):
            raise ValueError(f"a reason is 1 to 16 of a-z and '-', got {self.reason!r}")

    @property
    def name(self) -> str:
        """The name of the hello that says it: `bye`, `bye reboot`, `bye update 600`."""
        said = ("bye", self.reason, str(self.back_s) if self.back_s else "")
        return " ".join(part for part in said if part)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Frames of `boot_id` below `next_seq` are stored; `digest` is the last one's."""

    boot_id: int
    next_seq: int
    digest: int
    dataset: int
    server_ms: int


@dataclass(frozen=True, slots=True)
class BootCursor:
    """Where the server stands in a boot; `known` is False if it never saw it."""

    boot_id: int
    next_seq: int
    digest: int
    known: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to the hello with this nonce."""

    nonce: int
    dataset: int
    server_ms: int
    version: int
    boots: tuple[BootCursor, ...]


def encode_hello(hello: Hello, *, boot_id: int, ordinal: int) -> bytes:
    """Return a hello frame (outside the sequence, its `seq` is 0)."""
    agent = hello.agent.encode("ascii", "replace")[:MAX_AGENT]
    payload = b"".join(
        [
            _HELLO.pack(hello.nonce, len(hello.versions), len(agent)),
            bytes(hello.versions),
            agent,
            len(hello.boots).to_bytes(2, "little"),
            *(
                _HELLO_BOOT.pack(
                    b.boot_id, b.ordinal, b.first_seq, b.next_seq, b.quality, b.offset_ms
                )
                for b in hello.boots
            ),
        ]
    )
    return encode(
        Kind.HELLO,
        [encode_time(hello.span), section(Section.HELLO, payload)],
        boot_id=boot_id,
        seq=0,
        ordinal=ordinal,
    )


def decode_hello(data: bytes) -> Hello:
    """Read a hello frame; FrameError HELLO or any of the frame's own."""
    sections = read_body(data, read_header(data))
    span = decode_time(need(sections, Section.TIME))
    return decode_greeting(need(sections, Section.HELLO), span)


def decode_greeting(section_payload: memoryview, span: Span) -> Hello:
    """Read a HELLO section; FrameError HELLO."""
    payload = bytes(section_payload)
    try:
        nonce, versions, agent = _HELLO.unpack_from(payload)
        middle = _HELLO.size + versions
        after = middle + agent
        count = int.from_bytes(payload[after : after + 2], "little")
        rest = payload[after + 2 :]
        if versions > MAX_VERSIONS or agent > MAX_AGENT or count > MAX_BOOTS:
            raise FrameError(Reason.HELLO, f"{versions} versions, {count} boots")
        if len(payload) < after + 2 or len(rest) != count * _HELLO_BOOT.size:
            raise FrameError(Reason.HELLO, f"{len(payload)} bytes")
        boots = tuple(
            HeldBoot(boot_id, ordinal, first, after_last, Quality(quality), offset)
            for boot_id, ordinal, first, after_last, quality, offset in _HELLO_BOOT.iter_unpack(
                rest
            )
        )
        name = payload[middle:after].decode("ascii")
        if any(b.first_seq > b.next_seq or abs(b.offset_ms) > MAX_OFFSET_MS for b in boots):
            raise FrameError(Reason.HELLO, "a boot that ends before it begins, or is out of time")
    except (struct.error, ValueError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(Reason.HELLO, str(error)) from error
    return Hello(nonce, tuple(payload[_HELLO.size : middle]), name, span, boots)


def read_goodbye(name: str) -> Goodbye | None:
    """Return the goodbye that a hello's name says; None if it is an agent's."""
    found = _BYE.fullmatch(name)
    if found is None:
        return None
    return Goodbye(found[1] or "", min(int(found[2] or 0), MAX_BACK_S))


def encode_receipt(receipt: Receipt) -> bytes:
    """Return a receipt frame; `next_seq` stands in the header's seq."""
    payload = _RECEIPT.pack(receipt.dataset, receipt.server_ms, receipt.digest)
    return encode(
        Kind.RECEIPT,
        [section(Section.RECEIPT, payload)],
        boot_id=receipt.boot_id,
        seq=receipt.next_seq,
        ordinal=0,
    )


def encode_answer(answer: Answer) -> bytes:
    """Return an answer frame."""
    payload = _ANSWER.pack(
        answer.nonce, answer.dataset, answer.server_ms, answer.version, len(answer.boots)
    ) + b"".join(_ANSWER_BOOT.pack(b.boot_id, b.next_seq, b.digest, b.known) for b in answer.boots)
    return encode(Kind.ANSWER, [section(Section.ANSWER, payload)], boot_id=0, seq=0, ordinal=0)


def decode_downlink(data: bytes) -> Receipt | Answer:
    """Read what the server sent; FrameError HELLO if malformed."""
    header = read_header(data)
    return read_downlink(header, read_body(data, header))


def read_downlink(header: Header, sections: dict[Section, memoryview]) -> Receipt | Answer:
    """Read the one section of a receipt or an answer; FrameError MISSING, HELLO or KIND."""
    try:
        if header.kind == Kind.RECEIPT:
            dataset, server_ms, digest = _RECEIPT.unpack(need(sections, Section.RECEIPT))
            return Receipt(header.boot_id, header.seq, digest, dataset, server_ms)
        if header.kind == Kind.ANSWER:
            payload = need(sections, Section.ANSWER)
            nonce, dataset, server_ms, version, count = _ANSWER.unpack_from(payload)
            rest = payload[_ANSWER.size :]
            if count > MAX_BOOTS or len(rest) != count * _ANSWER_BOOT.size:
                raise FrameError(Reason.HELLO, f"{count} boots in {len(rest)} bytes")
            boots = tuple(
                BootCursor(boot_id, next_seq, digest, bool(known))
                for boot_id, next_seq, digest, known in _ANSWER_BOOT.iter_unpack(rest)
            )
            return Answer(nonce, dataset, server_ms, version, boots)
    except struct.error as error:
        raise FrameError(Reason.HELLO, str(error)) from error
    raise FrameError(Reason.KIND, f"kind {header.kind}")
