"""The device's check of an assignment: python-tuf's client, our transport, a process of its own.

`await check(question)` asks this module as a program (`python -m agent.update.trust`, JSON in and
out), so that what python-tuf needs in memory is given back; `decide` is what that program does.
What is installed has passed every rule of `agent.update.agreement`; rule 6 is python-tuf's client
workflow (https://theupdateframework.github.io/specification, 5.3 to 5.6), beginning with the root
that was put here when the device was installed or enrolled (`root.json`), and going on by its
chain: each next root is signed by a threshold of the one before and of its own.

A device need not know the time. What holds of it (numbers in the code):

T1. The timestamp role says when it signed (`issued`). The latest that was believed is kept, and is
    a floor: no time before it is taken for now, whatever a clock says.
T2. It may be ahead of a clock by a day; without a clock, ahead of the latest time that is known to
    be past otherwise (our certificate's beginning, at least) by 550 days: the certificate's year,
    and the grace in which it may still be renewed. What is further ahead is refused, and not kept;
    so nobody walks there in steps, either.
T3. The floor belongs to the timestamp's keys: once a root has named others, it begins anew. So who
    had such a key, and ran ahead with the time, has done so until then and no longer.
"""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

from agent.update.agreement import Fault, Installed, Refused
from protocol.assignment import MAX_ENVELOPE, Assignment, read_assignment
from protocol.content import ContentError

FOLDER: Final = Path("update", "trust")  # below the agent's state
ROOT: Final = "root.json"
MAX_ROOT = 65_536  # three keys of each role have 4 kB
LIMIT_S = 120.0
MAX_ANSWER = 65_536
_ROOT_OF_PACKAGES = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Question:
    """An assignment's envelope as it came, and what the device knows of itself.

    `now_ms` is UTC, None without a clock; `past_ms` a time that is known to be past.
    """

    envelope: bytes
    state: Path
    server: tuple[str, int]
    hardware: str
    nonce: str
    installed: Mapping[str, Installed]
    now_ms: int | None
    past_ms: int = 0

    def content(self) -> bytes:
        """Return it as the program reads it."""
        return json.dumps(
            {
                "envelope": self.envelope.decode("latin-1"),
                "state": str(self.state),
                "server": list(self.server),
                "hardware": self.hardware,
                "nonce": self.nonce,
                "installed": {name: asdict(each) for name, each in self.installed.items()},
                "now_ms": self.now_ms,
                "past_ms": self.past_ms,
            }
        ).encode()


@dataclass(frozen=True, slots=True)
class Verified:
    """What may be installed; `now_ms` is the time that the check went by."""

    assignment: Assignment
    now_ms: int


async def check(question: Question, *, limit_s: float = LIMIT_S) -> Verified:
    """Return what may be installed. Raises Refused, after `limit_s` at the latest."""
    if len(question.envelope) > MAX_ENVELOPE:
        raise Refused(Fault.MALFORMED, "", f"{len(question.envelope)} bytes of an envelope")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "agent.update.trust", str(limit_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT_OF_PACKAGES)},
    )
    try:
        async with asyncio.timeout(limit_s + 5):  # it ends itself; this is for one that hangs
            told, trouble = await process.communicate(question.content())
    except TimeoutError as error:
        raise Refused(Fault.SLOW, "", f"not checked within {limit_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read_answer(told, trouble, process.returncode)


def _read_answer(told: bytes, trouble: bytes, code: int | None) -> Verified:
    try:
        answer = json.loads(told[:MAX_ANSWER])
        if "refused" in answer:
            where, message = str(answer["where"]), str(answer["message"])
            raise Refused(Fault(answer["refused"]), where, message)
        return Verified(read_assignment(answer["verified"].encode()), int(answer["now_ms"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2]
        raise Refused(Fault.INTERNAL, "", f"the check ended with {code}: {last[:300]}") from error


def install_root(state: Path, content: bytes) -> bool:
    """Keep the root that everything hangs from; False if there is one already, which stays.

    Whoever installs or enrols the device gives it. Raises ValueError if it is none, OSError.
    """
    from agent.identity import put

    path = state / FOLDER / ROOT
    if not _is_root(content):
        raise ValueError("this is no root of releases")
    if path.exists() and _is_root(path.read_bytes()):
        return False
    put(path, content)
    return True


def _is_root(content: bytes) -> bool:
    try:
        kind: object = json.loads(content[: MAX_ROOT + 1])["signed"]["_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return kind == "root" and len(content) <= MAX_ROOT


# -- the program -------------------------------------------------------------------------------


def decide(question: Question, *, limit_s: float = LIMIT_S) -> Verified:
    """Hold an assignment to every rule, in order. Raises Refused."""
    from cryptography import x509

    from agent import identity
    from agent.content import vouched
    from agent.link import tls_context
    from agent.update import agreement
    from agent.update.fetch import Exchange
    from agent.update.releases import Times, approved
    from protocol import assignment as said

    try:
        envelope = said.read_envelope(question.envelope)  # 1
        assignment = read_assignment(envelope.text)
    except ContentError as error:
        raise Refused(Fault.MALFORMED, "", str(error)) from error
    found = identity.files(question.state)
    own = x509.load_pem_x509_certificates(found.chain.read_bytes())[0]
    past_ms = max(question.past_ms, round(own.not_valid_before_utc.timestamp() * 1000))
    times = Times(question.state / FOLDER / "time.json", now_ms=question.now_ms, past_ms=past_ms)
    now = datetime.fromtimestamp(times.own_ms() / 1000, UTC)
    try:
        roots = x509.load_pem_x509_certificates(found.bundle.read_bytes())
        vouched(envelope, roots=roots, now=now, signer=said.SIGNER)  # 2
    except ContentError as error:
        raise Refused(Fault.UNTRUSTED, "", str(error)) from error
    device = identity.read(question.state).device
    agreement.addressed(  # 3 to 5
        assignment, device=device, hardware=question.hardware, nonce=question.nonce
    )

    def check_server(der: bytes) -> None:
        if x509.load_der_x509_certificate(der).not_valid_after_utc < now:
            raise ssl.SSLError("the server's certificate has ended")

    context = tls_context(identity.for_link(question.state), timeless=question.now_ms is None)
    targets = [item.target for item in assignment.bundle]
    with Exchange(question.server, context, check=check_server, limit_s=limit_s) as fetcher:
        releases = approved(question.state / FOLDER, targets, fetcher=fetcher, times=times)  # 6
    agreement.agreed(  # 7 to 16
        assignment, releases, installed=question.installed, now_ms=times.now_ms()
    )
    return Verified(assignment, times.now_ms())


def answered(content: bytes, *, limit_s: float) -> bytes:
    """Return what the program writes to what it was asked."""
    try:
        verified = decide(_read_question(content), limit_s=limit_s)
    except Refused as refused:
        fault, where, message = refused.fault.value, refused.where, refused.message
        return json.dumps({"refused": fault, "where": where, "message": message}).encode()
    text = verified.assignment.content().decode()
    return json.dumps({"verified": text, "now_ms": verified.now_ms}).encode()


def _read_question(content: bytes) -> Question:
    data = json.loads(content)
    host, port = data["server"]
    return Question(
        envelope=data["envelope"].encode("latin-1"),
        state=Path(data["state"]),
        server=(host, port),
        hardware=data["hardware"],
        nonce=data["nonce"],
        installed={name: Installed(**each) for name, each in data["installed"].items()},
        now_ms=data["now_ms"],
        past_ms=data["past_ms"],
    )


def _too_slow(_: int, __: FrameType | None) -> None:
    raise Refused(Fault.SLOW, "", "the releases did not come in time")


def main(words: list[str]) -> int:
    """Answer the one question that comes, within so many seconds: `words[0]`."""
    limit_s = float(words[0])
    signal.signal(signal.SIGALRM, _too_slow)  # also where a peer dribbles headers or a handshake
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    answer = answered(sys.stdin.buffer.read(), limit_s=limit_s)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.buffer.write(answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
