"""Updates: what a device says of the code that it runs, and what the server answers to it.

`POST /v1/update` on the devices' HTTPS listener, with the device's certificate. It says (`Report`),
in an envelope {"report": {...}, "signature": base64 of ECDSA P-256 with SHA-256 over `SIGNED` and
the report}, made with the key of the certificate that the connection shows:

    {"format": 1, "device": "dc-…", "hardware": "DC2", "nonce": 32 hex digits of its own, fresh,
     "answers": the nonce of the server's last answer, or "",
     "components": {"agent": {"version": "1.2.3", "sha256": 64 hex digits or "", "floor": "1.0.0"}},
     "slot": "a", "trial": null | {"execution": "exe-…", "attempt": 1}, "busy": false,
     "steps": [{"execution": "exe-…", "attempt": 1, "seq": 3, "phase": "downloading", "code": "",
                "class": "", "bytes": 40960, "at": UTC in ms, 0 where the device has no clock,
                "tail": of what failed or was reverted the end of the device's journal, else ""}]}

It hears (`Answer`):

    {"format": 1, "nonce": 32 hex digits of the server's, fresh,
     "heard": [["exe-…", 1, 3], ...], "assignment": null | its envelope (`protocol.assignment`),
     "trial_ok": null | ["exe-…", 1], "cancel": ["exe-…"], "again_s": 3600}

`steps` are those that were not heard yet, of each (execution, attempt) numbered upwards from 1 and
in that order; `heard` names the highest number that is stored of each. A report that answers
another nonce than the server's last is stored and confirms nothing: the device asks again with the
nonce that it just got. `trial_ok` says that the server was reached by the code on trial.

Both are canonical JSON (`content`), so that a signature is over one form. Names that are not known
are passed over, on both sides: a device that is to be updated must understand a newer server.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.content import (
    FORMAT,
    ContentError,
    Fault,
    Json,
    bad,
    canonical,
    integer,
    list_of,
    parsed,
    signature_of,
)
from protocol.identity import device_id

SIGNED = b"vestibule update report 1\n"
MAX_REPORT = 65_536  # 64 steps with the longest codes and tails have 60 kB
MAX_ANSWER = 131_072
MAX_COMPONENTS = 8
MAX_STEPS = 64
MAX_CANCELLED = 16
MAX_ATTEMPT = 1_000
MAX_SEQ = (1 << 31) - 1  # as the database counts
MAX_BYTES = 1 << 40
MAX_TAIL = 300
MAX_AGAIN_S = 7 * 86_400
_MAX_UTC_MS = 1 << 48
_MAX_HARDWARE = 64
_EXECUTION = re.compile(r"exe-[a-z0-9]{8,32}")
_COMPONENT = re.compile(r"[a-z][a-z0-9-]{0,15}")
_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,40}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_SLOT = re.compile(r"[a-z0-9-]{1,16}")
_TAIL = re.compile(rf"[ -~]{{0,{MAX_TAIL}}}")


class Phase(StrEnum):
    """How far a device is with one try at an execution."""

    ACCEPTED = "accepted"
    DOWNLOADING = "downloading"
    READY = "ready"
    WAITING_WINDOW = "waiting_window"
    WAITING_IDLE = "waiting_idle"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    REVERTED = "reverted"
    REJECTED = "rejected"
    DEFERRED = "deferred"


class Class(StrEnum):
    """Of what kind a failure is; what may be tried again goes by this."""

    NETWORK = "network"
    STORAGE = "storage"
    TRUST = "trust"
    HARDWARE = "hardware"
    SELF_TEST = "self_test"
    TIMEOUT = "timeout"
    INTERNAL = "internal"
    REFUSED = "refused"


_WITH_CLASS = (Phase.FAILED, Phase.REJECTED)
_PERHAPS_CLASS = (*_WITH_CLASS, Phase.REVERTED)
_WITH_TAIL = (Phase.FAILED, Phase.REVERTED)


@dataclass(frozen=True, slots=True)
class Component:
    """One part of what a device runs; `sha256` is empty for what no update has brought."""

    version: str
    sha256: str = ""
    floor: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a device at an execution."""

    execution: str
    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a device has done in one try; `code` says more of a failure, of class `kind`.

    `tail`: the end of its journal, in printable ASCII.
    """

    attempt: Attempt
    seq: int
    phase: Phase
    code: str = ""
    kind: Class | None = None
    bytes: int = 0
    at_ms: int = 0
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says of its code, and of what it does about it."""

    device: str
    hardware: str
    nonce: str
    answers: str
    components: Mapping[str, Component]
    slot: str
    trial: Attempt | None = None
    busy: bool = False
    steps: tuple[Step, ...] = ()

    def content(self) -> bytes:
        """Return it in canonical form: what is signed, behind `SIGNED`."""
        return canonical(
            {
                "format": FORMAT,
                "device": self.device,
                "hardware": self.hardware,
                "nonce": self.nonce,
                "answers": self.answers,
                "components": {
                    name: {"version": each.version, "sha256": each.sha256, "floor": each.floor}
                    for name, each in self.components.items()
                },
                "slot": self.slot,
                "trial": None if self.trial is None else _attempt_value(self.trial),
                "busy": self.busy,
                "steps": [_step_value(each) for each in self.steps],
            }
        )


def _attempt_value(attempt: Attempt) -> dict[str, object]:
    return {"execution": attempt.execution, "attempt": attempt.number}


def _step_value(step: Step) -> Json:
    return _attempt_value(step.attempt) | {
        "seq": step.seq,
        "phase": step.phase.value,
        "code": step.code,
        "class": "" if step.kind is None else step.kind.value,
        "bytes": step.bytes,
        "at": step.at_ms,
        "tail": step.tail,
    }


@dataclass(frozen=True, slots=True)
class Signed:
    """A report as it travels; nothing of its signature is checked yet."""

    report: Report
    content: bytes
    signature: bytes = field(repr=False)

    @property
    def message(self) -> bytes:
        """What the signature has to be over."""
        return SIGNED + self.content


def signed_message(report: Report) -> bytes:
    """Return what a device's key signs."""
    return SIGNED + report.content()


def write_report(report: Report, signature: bytes) -> bytes:
    """Return a report as it is sent; `signature` is over `signed_message`. ContentError."""
    signed = base64.b64encode(signature).decode()
    content = report.content().decode()
    sent = f'{{"report":{content},"signature":"{signed}"}}'.encode()
    if len(sent) > MAX_REPORT:
        raise ContentError(Fault.TOO_LARGE, "", f"{len(sent)} bytes; at most {MAX_REPORT}")
    return sent


def read_report(content: bytes) -> Signed:
    """Read what a device sent; who signed it is checked elsewhere. Raises ContentError."""
    envelope = _canonical(content, MAX_REPORT)
    value = _format(_names(envelope.get("report"), "report"))
    report = Report(
        _device(value.get("device")),
        _hardware(value.get("hardware")),
        _matching(_NONCE, value.get("nonce"), "nonce", "32 hexadecimal digits"),
        _matching(_NONCE, value.get("answers"), "answers", "a nonce", empty=True),
        _components(value.get("components")),
        _matching(_SLOT, value.get("slot"), "slot", "a slot's name"),
        None if value.get("trial") is None else _attempt(value["trial"], "trial"),
        _truth(value.get("busy"), "busy"),
        _steps(value.get("steps")),
    )
    return Signed(report, canonical(value), signature_of(envelope.get("signature")))


def _components(value: object) -> dict[str, Component]:
    found = _names(value, "components")
    if len(found) > MAX_COMPONENTS:
        bad("components", f"at most {MAX_COMPONENTS}")
    return {
        _matching(_COMPONENT, name, "components", "a component's name"): _component(each, name)
        for name, each in found.items()
    }


def _component(value: object, name: str) -> Component:
    where = f"components.{name}"
    found = _names(value, where)
    return Component(
        _matching(_VERSION, found.get("version"), f"{where}.version", "a version"),
        _matching(_DIGEST, found.get("sha256"), f"{where}.sha256", "a digest", empty=True),
        _matching(_VERSION, found.get("floor"), f"{where}.floor", "a version", empty=True),
    )


def _steps(value: object) -> tuple[Step, ...]:
    steps = []
    last: dict[Attempt, int] = {}
    for at, each in enumerate(list_of(value, "steps", 0, MAX_STEPS)):
        step = _step(each, f"steps[{at}]")
        if step.seq <= last.get(step.attempt, 0):
            bad(f"steps[{at}].seq", "comes after a later one of the same attempt")
        last[step.attempt] = step.seq
        steps.append(step)
    return tuple(steps)


def _step(value: object, where: str) -> Step:
    found = _names(value, where)
    try:
        phase = Phase(str(found.get("phase")))
        kind = None if found.get("class") == "" else Class(str(found.get("class")))
    except ValueError as error:
        raise ContentError(
            Fault.BAD_FIELD, where, f"expected a phase and a class: {error}"
        ) from error
    if kind is None and phase in _WITH_CLASS:
        bad(f"{where}.class", f"is missing of one that {phase.value}")
    if kind is not None and phase not in _PERHAPS_CLASS:
        bad(f"{where}.class", f"belongs to a failure, not to {phase.value}")
    tail = _matching(_TAIL, found.get("tail"), f"{where}.tail", f"{MAX_TAIL} printable characters")
    if tail and phase not in _WITH_TAIL:
        bad(f"{where}.tail", f"belongs to a failure, not to {phase.value}")
    return Step(
        _attempt(found, where),
        integer(found.get("seq"), f"{where}.seq", 1, MAX_SEQ),
        phase,
        _matching(_CODE, found.get("code"), f"{where}.code", "a code", empty=True),
        kind,
        integer(found.get("bytes"), f"{where}.bytes", 0, MAX_BYTES),
        integer(found.get("at"), f"{where}.at", 0, _MAX_UTC_MS),
        tail,
    )


# -- the answer --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device hears; `heard`: the highest step that is stored of each try.

    `assignment` is an envelope's bytes as `protocol.assignment` reads them, or None.
    """

    nonce: str
    again_s: int
    heard: Mapping[Attempt, int] = field(default_factory=dict)
    assignment: bytes | None = None
    trial_ok: Attempt | None = None
    cancel: tuple[str, ...] = ()


def write_answer(answer: Answer) -> bytes:
    """Return an answer as it is sent. ContentError: its assignment is no JSON."""
    trial_ok = answer.trial_ok
    return canonical(
        {
            "format": FORMAT,
            "nonce": answer.nonce,
            "heard": [[each.execution, each.number, seq] for each, seq in answer.heard.items()],
            "assignment": None
            if answer.assignment is None
            else parsed(answer.assignment, MAX_ANSWER),
            "trial_ok": None if trial_ok is None else [trial_ok.execution, trial_ok.number],
            "cancel": list(answer.cancel),
            "again_s": answer.again_s,
        }
    )


def read_answer(content: bytes) -> Answer:
    """Read what the server answered. Raises ContentError."""
    value = _format(_canonical(content, MAX_ANSWER))
    heard = {}
    for at, each in enumerate(list_of(value.get("heard"), "heard", 0, MAX_STEPS)):
        row = list_of(each, f"heard[{at}]", 3, 3)
        attempt = _pair(row[:2], f"heard[{at}]")
        heard[attempt] = integer(row[2], f"heard[{at}]", 1, MAX_SEQ)
    assignment, trial_ok = value.get("assignment"), value.get("trial_ok")
    return Answer(
        _matching(_NONCE, value.get("nonce"), "nonce", "32 hexadecimal digits"),
        integer(value.get("again_s"), "again_s", 1, MAX_AGAIN_S),
        heard,
        None if assignment is None else canonical(_names(assignment, "assignment")),
        None if trial_ok is None else _pair(list_of(trial_ok, "trial_ok", 2, 2), "trial_ok"),
        tuple(
            _execution(each, "cancel")
            for each in list_of(value.get("cancel"), "cancel", 0, MAX_CANCELLED)
        ),
    )


# -- values ------------------------------------------------------------------------------------


def _canonical(content: bytes, most: int) -> Json:
    value = _names(parsed(content, most), "")
    if canonical(value) != content:
        raise ContentError(Fault.NOT_CANONICAL, "", "expected canonical JSON")
    return value


def _format(value: Json) -> Json:
    if type(value.get("format")) is not int or value["format"] != FORMAT:
        raise ContentError(Fault.UNKNOWN_FORMAT, "format", f"expected {FORMAT}")
    return value


def _names(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        bad(where, "expected an object")
    return value


def _matching(
    pattern: re.Pattern[str], value: object, where: str, what: str, *, empty: bool = False
) -> str:
    if not isinstance(value, str) or not (pattern.fullmatch(value) or (empty and value == "")):
        bad(where, f"expected {what}")
    return value


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        bad(where, "expected true or false")
    return value


def _device(value: object) -> str:
    try:
        return device_id(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ContentError(Fault.BAD_FIELD, "device", str(error)) from error


def _hardware(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_HARDWARE or not value.isprintable():
        raise ContentError(Fault.BAD_TEXT, "hardware", f"expected 1 to {_MAX_HARDWARE} characters")
    return value


def _execution(value: object, where: str) -> str:
    return _matching(_EXECUTION, value, where, "an execution's name")


def _attempt(value: object, where: str) -> Attempt:
    found = _names(value, where)
    return _pair([found.get("execution"), found.get("attempt")], where)


def _pair(pair: list[object], where: str) -> Attempt:
    return Attempt(
        _execution(pair[0], f"{where}.execution"),
        integer(pair[1], f"{where}.attempt", 1, MAX_ATTEMPT),
    )
