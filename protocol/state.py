"""A device's state: what it says of itself, and what the server answers that it is to be and do.

`POST /v1/state` on the devices' HTTPS listener, with the device's certificate. It says (`Report`):

    {"agent": "0.2.0", "boot": 16 hex digits, "version": 3, "known": ["health_s", ...],
     "values": {"health_s": 900, ...}, "refused": {"broker": [17, "reverted"]},
     "commands": [{"command": "cmd-…", "state": "running" | "done" | "failed", "code": "…",
                   "result": {name: number or text}}]}

`version` is the one that it has dealt with, 0 for none; `values` are those in force. It hears
(`Answer`):

    {"version": 4, "settings": {"health_s": [600, 17]}, "confirm_s": 300,
     "commands": [{"command": "cmd-…", "kind": "reboot", "ttl_s": 840, "lines": 100}],
     "heard": ["cmd-…"], "withdrawn": ["cmd-…"]}

`settings` is all that is set for it, each value with the number of its writing: what was refused
is tried again once that number is another. `commands` are what it is to do and the server has not
heard the end of; each is done once, whatever is sent again. `heard` are those whose end is
stored; `withdrawn` are those that were said to be running and are wanted no more.

Names that are not known are passed over, on both sides; what is known has to be in its caps.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol.content import ContentError, Fault, bad, integer, list_of, parsed
from protocol.settings import TABLE, Value

MAX_REPORT = 16_384
MAX_ANSWER = 65_536
MAX_COMMANDS = 16
MAX_HEARD = 64
MAX_RESULT = 24
MAX_TEXT = 300
MAX_FILE = 262_144
MAX_NUMBER = (1 << 53) - 1  # whole in every reader of JSON
REBOOT, IDENTIFY, SELF_TEST, DIAGNOSTICS, LOG_TAIL = (
    *("reboot", "identify", "self-test", "diagnostics", "log-tail"),
)
COMMANDS: Final = (REBOOT, IDENTIFY, SELF_TEST, DIAGNOSTICS, LOG_TAIL)
RUNNING, DONE, FAILED = "running", "done", "failed"
INTERRUPTED: Final = "interrupted"
_COMMAND = re.compile(r"[a-z]{2,8}-[a-z0-9]{8,32}")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,47}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a device has come with a command; `code` says why it failed."""

    command: str
    state: str
    code: str = ""
    result: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says of itself."""

    agent: str
    boot: str
    version: int
    known: tuple[str, ...]
    values: Mapping[str, Value]
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    commands: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """A command as a device is given it; `lines` of its log, where that is asked for."""

    command: str
    kind: str
    ttl_s: int
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device is to be and do; a setting has its value and the number of its writing."""

    version: int
    settings: Mapping[str, tuple[Value, int]]
    confirm_s: int
    commands: tuple[Order, ...] = ()
    heard: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()


def write_report(report: Report) -> str:
    """Return a report as it is sent."""
    return json.dumps(
        {
            "agent": report.agent,
            "boot": report.boot,
            "version": report.version,
            "known": list(report.known),
            "values": dict(report.values),
            "refused": {key: list(each) for key, each in report.refused.items()},
            "commands": [outcome_value(each) for each in report.commands],
        }
    )


def outcome_value(outcome: Outcome) -> dict[str, object]:
    """Return an outcome as JSON has it."""
    return {
        "command": outcome.command,
        "state": outcome.state,
        "code": outcome.code,
        "result": dict(outcome.result),
    }


def read_report(content: bytes) -> Report:
    """Read what a device sent. Raises ContentError."""
    value = _object(parsed(content, MAX_REPORT), "")
    refused = {}
    for key, each in _names(value.get("refused", {}), "refused").items():
        pair = list_of(each, f"refused.{key}", 2, 2)
        number = integer(pair[0], f"refused.{key}", 0, MAX_NUMBER)
        refused[key] = (number, _text(pair[1], f"refused.{key}"))
    known = [_text(each, "known") for each in list_of(value.get("known", []), "known", 0, 64)]
    return Report(
        _text(value.get("agent", ""), "agent"),
        _text(value.get("boot", ""), "boot"),
        integer(value.get("version", 0), "version", 0, MAX_NUMBER),
        tuple(known),
        {
            key: _value(each, f"values.{key}")
            for key, each in _names(value.get("values", {}), "values").items()
        },
        refused,
        tuple(
            read_outcome(each)
            for each in list_of(value.get("commands", []), "commands", 0, MAX_HEARD)
        ),
    )


def read_outcome(value: object) -> Outcome:
    """Read one outcome. Raises ContentError."""
    found = _object(value, "commands")
    state = _text(found.get("state"), "commands.state")
    if state not in (RUNNING, DONE, FAILED):
        bad("commands.state", f"expected {RUNNING}, {DONE} or {FAILED}")
    result = _names(found.get("result", {}), "commands.result")
    if len(result) > MAX_RESULT:
        bad("commands.result", f"at most {MAX_RESULT} names")
    return Outcome(
        _command(found.get("command"), "commands.command"),
        state,
        _text(found.get("code", ""), "commands.code"),
        {name: _value(each, f"commands.result.{name}") for name, each in result.items()},
    )


def write_answer(answer: Answer) -> str:
    """Return an answer as it is sent."""
    return json.dumps(
        {
            "version": answer.version,
            "settings": {key: list(each) for key, each in answer.settings.items()},
            "confirm_s": answer.confirm_s,
            "commands": [
                {
                    "command": each.command,
                    "kind": each.kind,
                    "ttl_s": each.ttl_s,
                    "lines": each.lines,
                }
                for each in answer.commands
            ],
            "heard": list(answer.heard),
            "withdrawn": list(answer.withdrawn),
        }
    )


def read_answer(content: bytes) -> Answer:
    """Read what the server answered; settings that are not known here stay out. ContentError."""
    value = _object(parsed(content, MAX_ANSWER), "")
    settings = {}
    for key, each in _names(value.get("settings"), "settings").items():
        pair = list_of(each, f"settings.{key}", 2, 2)
        number = integer(pair[1], f"settings.{key}", 0, MAX_NUMBER)
        if key in TABLE:
            settings[key] = (_value(pair[0], f"settings.{key}"), number)
    heard, withdrawn = (
        tuple(_command(each, name) for each in list_of(value.get(name, []), name, 0, MAX_HEARD))
        for name in ("heard", "withdrawn")
    )
    return Answer(
        integer(value.get("version"), "version", 0, MAX_NUMBER),
        settings,
        integer(value.get("confirm_s"), "confirm_s", 1, 3_600),
        tuple(
            _order(each) for each in list_of(value.get("commands", []), "commands", 0, MAX_COMMANDS)
        ),
        heard,
        withdrawn,
    )


def _order(value: object) -> Order:
    found = _object(value, "commands")
    return Order(
        _command(found.get("command"), "commands.command"),
        _text(found.get("kind"), "commands.kind"),
        integer(found.get("ttl_s"), "commands.ttl_s", 0, 30 * 86_400),
        integer(found.get("lines", 0), "commands.lines", 0, 10_000),
    )


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        bad(where, "expected an object")
    return value


def _names(value: object, where: str) -> dict[str, object]:
    found = _object(value, where)
    if len(found) > 64 or not all(_NAME.fullmatch(name) for name in found):
        bad(where, "expected up to 64 short names")
    return found


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise ContentError(Fault.BAD_TEXT, where, f"expected up to {MAX_TEXT} characters")
    return value


def _value(value: object, where: str) -> Value:
    if isinstance(value, str):
        return _text(value, where)
    return integer(value, where, -MAX_NUMBER, MAX_NUMBER)


def _command(value: object, where: str) -> str:
    if not isinstance(value, str) or not _COMMAND.fullmatch(value):
        bad(where, "expected a command's name")
    return value
