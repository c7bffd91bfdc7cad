"""The `vestibule-agent` command."""

import argparse
import asyncio
import json
import os
import random
import socket
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

from agent import agent, config, factory, identity, logs
from agent.clock import SystemClock
from agent.config import AgentConfig, ConfigError
from agent.doctor import State, examine
from agent.enrol import (
    OWN_FOLDER,
    EnrolError,
    StateError,
    Ticket,
    TokenError,
    enrol_by,
    parse_token,
    pause_s,
)
from agent.feed import MAX_LATER_S
from agent.identity import Enrolled, NotEnrolledError
from agent.outbox import Outbox, OutboxBusyError
from agent.update.launch import FOLDER, TRIAL, again, ended, launched
from agent.update.trust import install_root
from protocol.frame import Quality
from protocol.label import LabelError

OK, FAILED, USAGE, NOT_ENROLLED, REFUSED, BUSY, TEMPORARY = 0, 1, 2, 3, 4, 5, 75
LASTING = {USAGE: 102, NOT_ENROLLED: 103, REFUSED: 104}
"""What `run` ends with where it was launched and does not heal: never said by code on trial, which
may end with anything, and is then started no more because the launcher goes back."""
ANSWER_S = 10.0
START_S = 5.0
WAITED_FOR = frozenset({"pending", "too_many"})  # what `enrol` waits out; else it says 75

_EPILOG = """\
first count in five commands: see agent/README.md

exit codes: 0 done; 1 a check or a count failed, or the state folder cannot be written;
2 wrong usage or settings; 3 not enrolled; 4 the server refused for good; 5 another agent is
running; 75 try again later. An agent that systemd launches says 102, 103, 104 for 2, 3, 4

settings: /etc/vestibule/agent.toml (or --config), over it VESTIBULE_AGENT_<KEY> in the
environment, such as VESTIBULE_AGENT_STATE=/tmp/state
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    code = _done(arguments)
    how = launched()
    if arguments.act is _run and how is not None:
        _note_end(arguments)  # whatever it says, it says so itself
        if code in LASTING and how.why != TRIAL:
            return LASTING[code]
    return code


def _note_end(arguments: argparse.Namespace) -> None:
    with suppress(ConfigError):
        ended(config.load(arguments.config).state / FOLDER)


def _done(arguments: argparse.Namespace) -> int:
    try:
        settings = config.load(arguments.config)
        return int(arguments.act(settings, arguments))
    except ConfigError as error:
        return _fail(USAGE, str(error))
    except NotEnrolledError as error:
        return _fail(NOT_ENROLLED, str(error))
    except EnrolError as error:
        return _fail(REFUSED, str(error))
    except OutboxBusyError as error:
        return _fail(BUSY, f"{error}: is the agent running already?")
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vestibule-agent",
        description="Count people, or ask them how it was, and deliver it exactly once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_enrol(commands)

    one = commands.add_parser(
        "run",
        help="count, keep and deliver until stopped",
        description="Run the agent. systemd does this; SIGTERM ends it cleanly.",
    )
    one.set_defaults(act=_run)

    one = commands.add_parser(
        "doctor",
        help="check clock, disk, outbox, certificate and broker",
        description="Check this device; each finding comes with what to do about it.",
    )
    one.set_defaults(act=_doctor)

    one = commands.add_parser("status", help="ask the running agent how it is (JSON)")
    one.set_defaults(act=_status)

    one = commands.add_parser(
        "trust",
        help="keep the root of releases that this device begins with",
        description="Keep the root that every release which this device installs must hang from. "
        "For whoever makes an image; else a device takes it from the server when it enrols. One "
        "that is here stays.",
    )
    one.add_argument("root", type=Path, help="1.root.json, as `vestibule release` made it")
    one.set_defaults(act=_trust)

    one = commands.add_parser(
        "later",
        help="ask the running agent not to be updated for a while",
        description="Let no update begin for so many minutes; together not for longer than the"
        " update's own assignment allows.",
    )
    one.add_argument(
        "minutes",
        type=int,
        choices=range(1, MAX_LATER_S // 60 + 1),
        metavar="N",
        help=f"for so many minutes from now on, at most {MAX_LATER_S // 60}",
    )
    one.set_defaults(act=_later)

    _add_count(commands)
    return parser


def _add_enrol(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = commands.add_parser(
        "enrol",
        help="turn a claim token, or this device's label, into its certificate",
        description="Make a key here, and have it certified by the server that made the claim, or "
        "that knows the label. May be repeated after any interruption. By its label a device waits "
        "until a technician has said where it stands. An agent that runs is stopped first.",
    )
    one.add_argument(
        "token", nargs="?", help="vst1.… as `vestibule device add` printed it; '-' reads stdin"
    )
    one.add_argument("--serial", help="of the label (or `serial` in the settings)")
    one.add_argument("--secret", help="of the label; '-' reads stdin (or `setup_secret`)")
    one.add_argument("--server", help="https://host[:port] (or `server`)")
    one.add_argument("--root", help="SHA-256 of the fleet's root, in hex (or `root_sha256`)")
    one.add_argument("--voucher", default="", help="vsv1.… from a technician's phone")
    one.add_argument("--spot", default="", help="where it stands, with a voucher")
    one.add_argument("--no-wait", action="store_true", help="do not wait for a technician")
    one.add_argument("--again", action="store_true", help="replace an identity that exists")
    one.set_defaults(act=_enrol)


def _add_count(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = commands.add_parser(
        "count",
        help="feed a test count to the running agent",
        description="Feed one event to the agent's socket as an integrator would, and wait until "
        "it is on disk. It is counted for real.",
    )
    one.add_argument("--line", type=int, default=0, help="counting line (default 0)")
    one.add_argument("--in", dest="entered", type=int, default=1, help="people in (default 1)")
    one.add_argument("--out", dest="left", type=int, default=0, help="people out (default 0)")
    one.add_argument("--answer", type=int, help="press this answer instead (kiosk)")
    one.add_argument("--question", type=int, default=1, help="of this question (default 1)")
    one.add_argument("--source", default="command", help="name of the feeder (default 'command')")
    one.set_defaults(act=_count)


def _enrol(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    try:
        done = _enrol_waiting(settings, arguments, _ticket(settings, arguments))
    except StateError as error:
        return _fail(FAILED, str(error))
    except EnrolError as error:
        return _fail(REFUSED if error.permanent else TEMPORARY, str(error))
    except (TokenError, LabelError) as error:
        return _fail(USAGE, str(error))
    except PermissionError as error:
        return _fail(FAILED, str(StateError(settings.state, error)))
    except OutboxBusyError:
        return _fail(
            BUSY,
            "an agent is running with this state folder; stop it first (`systemctl"
            " stop vestibule-agent`), enrol, and start it again",
        )
    except sqlite3.Error as error:
        return _fail(FAILED, f"{settings.outbox}: {error}. {OWN_FOLDER}")
    print(f"enrolled as {done.device}, a {done.kind}; broker {done.broker_host}:{done.broker_port}")
    return OK


def _enrol_waiting(
    settings: AgentConfig, arguments: argparse.Namespace, ticket: Ticket
) -> Enrolled:
    """Enrol; what waiting helps against is said once, and waited for."""
    timeless = SystemClock().offset()[0] is Quality.NONE
    began, said = time.monotonic(), ""
    while True:
        try:
            with _alone(settings, again=arguments.again):
                return enrol_by(
                    ticket, state=settings.state, timeless=timeless, again=arguments.again
                )
        except EnrolError as error:
            if error.code not in WAITED_FOR or arguments.no_wait:
                raise
            if str(error) != said:
                said = str(error)
                print(said, file=sys.stderr, flush=True)
            waited_s = time.monotonic() - began
            wait_s = pause_s(error, waited_s=waited_s, dice=random.SystemRandom().random())
        time.sleep(wait_s)


def _alone(settings: AgentConfig, *, again: bool) -> AbstractContextManager[object]:
    """Own the outbox, as a running agent does, while an identity is written; OutboxBusyError.

    An agent makes its outbox before it writes an identity, so without one none is running.
    """
    with suppress(NotEnrolledError):
        identity.read(settings.state)
        if not again:
            return nullcontext()  # it is only said, or refused
    return closing(Outbox(settings.outbox)) if settings.outbox.exists() else nullcontext()


def _ticket(settings: AgentConfig, arguments: argparse.Namespace) -> Ticket:
    """Return what the command line shows, or else what factory and technician have left here."""
    if arguments.token is not None:
        text = sys.stdin.readline() if arguments.token in ("-", "") else arguments.token
        return parse_token(text)
    named = (arguments.serial, arguments.secret, arguments.voucher, arguments.spot)
    if not any(named) and (found := factory.ticket(settings)) is not None:
        return found
    secret = sys.stdin.readline() if arguments.secret == "-" else arguments.secret  # noqa: S105
    given = {
        "--server": arguments.server or settings.server,
        "--root": arguments.root or settings.root_sha256,
        "--serial": arguments.serial or settings.serial,
        "--secret": secret or settings.setup_secret,
    }
    if missing := [name for name, text in given.items() if not text]:
        raise TokenError(f"give a claim token, or the label: {', '.join(missing)} not known")
    return factory.labelled(
        given["--server"],
        given["--root"],
        serial=given["--serial"],
        secret=given["--secret"],
        voucher=arguments.voucher,
        spot=arguments.spot,
    )


def _run(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    del arguments
    logs.configure(settings.log_level)
    if asyncio.run(agent.run(settings)):
        if (how := launched()) is not None:
            ended(settings.state / FOLDER)
            again(how)  # it decides out of which slot
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves, started anew
    return OK


def _doctor(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    del arguments
    worst = OK
    for finding in examine(settings):
        print(f"{finding.state.value:4}  {finding.check:12} {finding.what}")
        if finding.remedy:
            print(f"      {'':12} -> {finding.remedy}")
        if finding.state is State.FAIL:
            worst = FAILED
    return worst


def _status(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    del arguments
    answer = _ask(settings, [{"status": True}], until="status")
    if answer is None:
        return _fail(TEMPORARY, f"no agent answers at {settings.socket}")
    print(json.dumps(answer["status"], indent=1))
    return OK


def _later(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    asked = {"source": "command", "later_s": arguments.minutes * 60}
    answer = _ask(settings, [asked], until="later_s")
    if answer is None or "error" in answer:
        return _fail(TEMPORARY, f"no agent answers at {settings.socket}")
    print(f"no update begins for {arguments.minutes} minutes")
    return OK


def _count(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    deadline = time.monotonic() + START_S  # the agent may just be starting
    while (greeting := _ask(settings, [{"source": arguments.source}], until="stored")) is None:
        if time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        return _fail(TEMPORARY, f"no agent answers at {settings.socket}")
    number = int(str(greeting["stored"])) + 1
    event: dict[str, object] = {"source": arguments.source, "id": number}
    if arguments.answer is None:
        event |= {"line": arguments.line, "in": arguments.entered, "out": arguments.left}
    else:
        event |= {"question": arguments.question, "answer": arguments.answer}
    answer = _ask(settings, [event], until="stored", at_least=number)
    if answer is None:
        return _fail(FAILED, "the agent did not confirm; ask again with `status`")
    if "error" in answer:
        return _fail(FAILED, str(answer["error"]))
    print(f"on disk: event {number} of {arguments.source!r}")
    return OK


def _trust(settings: AgentConfig, arguments: argparse.Namespace) -> int:
    try:
        kept = install_root(settings.state, arguments.root.read_bytes())
    except (OSError, ValueError) as error:
        return _fail(FAILED, f"{arguments.root}: {error}")
    if not kept:
        return _fail(REFUSED, "there is a root here already, which stays: by its chain it goes on")
    print("kept: this device installs what hangs from it, and nothing else")
    return OK


def _ask(
    settings: AgentConfig, messages: list[dict[str, object]], *, until: str, at_least: int = 0
) -> dict[str, object] | None:
    """Say `messages` at the agent's socket; return its first answer that says `until`, or error."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(str(settings.socket))
            sock.sendall(b"".join(json.dumps(m).encode() + b"\n" for m in messages))
            for line in sock.makefile("rb"):
                answer = json.loads(line)
                if not isinstance(answer, dict):
                    return None
                if "error" in answer:
                    return answer
                if until in answer and (until != "stored" or answer["stored"] >= at_least):
                    return answer
    except (OSError, ValueError):
        return None
    return None


def _fail(code: int, message: str) -> int:
    print(f"vestibule-agent: {message}", file=sys.stderr)
    return code
