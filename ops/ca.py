"""`vestibule ca`: the fleet's roots and authorities, and moving the fleet from one to the next.

The roots' keys sign a few times in twenty years. `ca init` encrypts them and says where to take
them; the steps that need one ask for its folder (--keys) and its password (a prompt, or the file
that VESTIBULE_ROOT_PASSWORD_FILE names).

A change has four steps: begin it (`rollover start`, or `issue-intermediate`), `install` what the
broker is to trust, `rollover switch`, and later `rollover finish`. Each install restarts the
broker, since its releases 2.0.21 and 2.0.22 cannot be told to reload: a planned event, seconds
long, in which devices keep what they count. Otherwise nobody is disconnected.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from cryptography import x509

from ops.broker import bundles
from ops.deployment import database, deployment, home
from ops.passwords import password
from ops.services.endpoints import BROKER_URL
from ops.services.errors import ServicesError
from ops.services.process import wait_until
from ops.services.stack import Stack
from ops.words import Verbs, parser_of
from server.audit.log import record
from server.pki import generations as rules
from server.pki import rollover
from server.pki.authority import Authority, AuthorityError
from server.pki.files import Files
from server.pki.generations import Kind, RolloverError, State
from server.pki.revocations import listed_serials, valid_until
from server.provisioning.authorities import LIVE, Trust, follow, holders, hurry, trust_in

PASSWORD_FILE = "VESTIBULE_ROOT_PASSWORD_FILE"  # noqa: S105 - a name
NEEDED_PERCENT = 99.0
RENEW_WITHIN = timedelta(days=30)
BACK_WITHIN_S = 120.0
_MOST_NAMED = 20
Action = Callable[[argparse.Namespace], Coroutine[None, None, int]]


def main(argv: list[str]) -> int:
    """Run the subcommand; returns its exit code: 1 is not done, with the reason."""
    options = _parser().parse_args(argv)
    action: Action = options.action
    try:
        return asyncio.run(action(options))
    except (AuthorityError, RolloverError) as error:
        print(f"vestibule ca: {error}", file=sys.stderr)
        return 1


async def init(options: argparse.Namespace) -> int:
    directory: Path = options.directory
    if (directory / "root.pem").exists():
        why = _forgotten_words(directory) if Files.read(directory).roots_forgotten else ""
        raise AuthorityError(f"{directory} already holds an authority{why and f', {why}'}")
    authority = Authority.create(directory, now=_now(), password=_password(new=True))
    keys = authority.directory / "offline"
    print(f"The fleet's roots and authorities are in {authority.directory}.\n")
    print(
        f"The keys of the root and of the next root are in {keys}, encrypted.\n"
        "They are not needed here. Now, before anything else:\n"
        "  1. copy that folder to two media, and read both back;\n"
        "  2. keep them, and the password, in different places;\n"
        f"  3. delete it here: rm -r {keys}\n"
        "Whoever has a key and the password can pose as the whole fleet's server. Without them\n"
        "this fleet can never get new authorities: its devices would have to be enrolled anew.\n"
        "`vestibule ca rollover start` and `issue-intermediate` will ask for them, in years."
    )
    return 0


async def show(options: argparse.Namespace) -> int:
    authority = Authority.load(options.directory)
    files, now = authority.files, _now()
    print("roots and authorities")
    for generation in files.generations:
        ends = files.certificate(generation.name).not_valid_after_utc
        what = f"until {ends:%Y-%m-%d}" if generation.state is not State.GONE else ""
        print(
            f"  {generation.name:12} {generation.state:8} {what}  {_key_words(files, generation)}"
        )
    if files.roots_forgotten:
        print(f"to do\n  this authority was {_forgotten_words(files.directory)}")
    print("services")
    for path in sorted(authority.directory.glob("*.pem")):
        if path.with_suffix(".key").exists():
            print(f"  {path.stem:12} {_ends_words(path, now)}")
    print(f"revocation list\n  {_crl_words(authority, now)}")
    try:
        async with _database() as connection:
            await follow(connection, authority)
            await _show_devices(connection, now)
            trust = await trust_in(connection, _next_root_spki(authority), now=now)
            print(f"trust in {rules.next_root(files.generations).name}, the next root")
            print(f"  {_trust_words(trust)}")
    except (ServicesError, OSError, asyncpg.PostgresError) as error:
        print(f"devices\n  not known: {error}")
    if pending := bundles.waiting(authority.directory):
        named = ", ".join(pending)
        if _given_at_start(authority.directory):
            print(f"broker\n  `vestibule serve` starts it, and gives it {named}")
        else:
            print(f"to do\n  the broker has not got {named}: `vestibule ca install`")
    return 0


async def issue_intermediate(options: argparse.Namespace) -> int:
    kind, now = Kind(options.kind), _now()
    files = Files.read(options.directory)
    rules.with_authority(files.generations, kind)  # says what stands against it before it asks
    password = _opening(files, rules.signing(files.generations, Kind.ROOT), options)
    async with _acting(f"{kind} authority begun", now) as connection:
        authority = await asyncio.to_thread(
            rollover.begin_authority, files, kind, keys=_keys(options), password=password, now=now
        )
        await follow(connection, authority)
    print(f"There is a new {kind} authority; it signs after `install` and `rollover switch`.")
    return 0


async def start(options: argparse.Namespace) -> int:
    now, files = _now(), Files.read(options.directory)
    rules.with_rollover(files.generations)  # says what stands against it before it asks
    password = _opening(files, rules.next_root(files.generations), options)
    async with _acting("rollover begun", now) as connection:
        authority = await asyncio.to_thread(
            rollover.begin_rollover, files, keys=_keys(options), password=password, now=now
        )
        await follow(connection, authority)
    print(
        "There are authorities below the next root, and a root after it, whose key is in\n"
        f"{_keys(options)}: take it away as you did the others. Next: `vestibule ca install`."
    )
    return 0


async def status(options: argparse.Namespace) -> int:
    authority, now = Authority.load(options.directory), _now()
    generations = authority.files.generations
    begun, leaving = rules.staged(generations), _leaving(generations)
    if not begun and not leaving:
        print("nothing is being changed")
    if begun:
        print(f"begun: {', '.join(g.name for g in begun)}")
        pending = [n for n in bundles.waiting(authority.directory) if n in bundles.TRUSTED]
        print(f"  the broker {'does not trust them yet: install' if pending else 'trusts them'}")
    async with _database() as connection:
        trust = await trust_in(connection, _next_root_spki(authority), now=now)
        print(f"trust in {rules.next_root(generations).name}: {_trust_words(trust)}")
        _print_names(trust.stragglers)
        if leaving:
            held = await _held(connection, authority, now)
            print(f"leaving: {', '.join(leaving)}; {len(held)} devices still need them")
            _print_names(held)
    return 0


async def switch(options: argparse.Namespace) -> int:
    """Switch, in this order; the same numbers stand in the code.

    1. Something was begun.
    2. The broker trusts it already, so that no device is refused with what it is given next.
    3. If the root changes: enough of the fleet has proved to trust the next one.
    """
    authority, now = Authority.load(options.directory), _now()
    generations = authority.files.generations
    rules.switched(generations)  # 1
    if [name for name in bundles.waiting(authority.directory) if name in bundles.TRUSTED]:  # 2
        raise RolloverError("the broker does not trust what was begun: `vestibule ca install`")
    async with _database() as connection:
        trust = await trust_in(connection, _next_root_spki(authority), now=now)
        if rules.moves_root(generations) and not options.force:  # 3
            _demand_trust(trust, options.percent)
    detail = {"proved": trust.proved, "seen": trust.seen, "forced": bool(options.force)}
    async with _acting("rollover switched", now, detail) as connection:
        renewals = 0
        if any(g.kind is Kind.DEVICE for g in rules.staged(generations)):
            before = authority.device_authority.name
            renewals = await hurry(connection, [before], now=now, over=RENEW_WITHIN)
        changed = await asyncio.to_thread(rollover.switch, authority.files, now=now)
        await follow(connection, changed)
    print(f"The new authorities sign. {renewals} devices renew within {RENEW_WITHIN.days} days.")
    print("The broker shows its new certificate after `vestibule ca install`.")
    return 0


async def finish(options: argparse.Namespace) -> int:
    """Refused while devices would be locked out, unless forced; they are named."""
    authority, now = Authority.load(options.directory), _now()
    rules.finished(authority.files.generations)
    async with _database() as connection:
        held = await _held(connection, authority, now)
        present = authority.spki_of(rules.signing(authority.files.generations, Kind.ROOT).name)
        trust = await trust_in(connection, present, now=now)
    root_leaves = rules.of(authority.files.generations, Kind.ROOT, State.LEAVING)
    if not options.force:
        if held:
            _print_names(held)
            raise RolloverError(f"{len(held)} devices have not renewed yet: wait, or --force")
        if root_leaves:
            _demand_trust(trust, options.percent)
    detail = {"locked_out": len(held), "forced": bool(options.force)}
    async with _acting("rollover finished", now, detail) as connection:
        changed = await asyncio.to_thread(rollover.finish, authority.files, now=now)
        await follow(connection, changed)
    print("What was leaving is trusted no longer, from the next `vestibule ca install` on.")
    return 0


async def install(options: argparse.Namespace) -> int:
    """Give the broker its files, by a restart that is planned and written down."""
    authority = Authority.load(options.directory)
    if BROKER_URL in os.environ and not options.done:
        print("This broker is yours. In a planned window, copy to it from")
        print(f"  {authority.directory}: {', '.join(bundles.FILES)}")
        print("and restart it (no SIGHUP before 2.0.23). Then: vestibule ca install --done")
        return 1
    if options.done:
        bundles.note_installed(authority.directory)
        away = Away(0, 0, 0.0, None)
    else:
        away = await asyncio.to_thread(restart, Stack(home()))
    detail = {"planned": True, "why": "certificates", "away_s": round(away.broker_s, 1)}
    async with _acting("broker restarted", _now(), detail):
        pass
    print(away.words())
    return 0


@dataclass(frozen=True, slots=True)
class Away:
    """How long a restart kept the broker, and then the fleet, away; None: not all came back."""

    before: int
    after: int
    broker_s: float
    fleet_s: float | None

    def words(self) -> str:
        if not self.broker_s:
            return "Noted."
        text = f"The broker was away for {self.broker_s:.1f} s"
        if self.fleet_s is not None:
            return f"{text}; all {self.before} connections were back after {self.fleet_s:.1f} s."
        return f"{text}; {self.after} of {self.before} connections are back so far."


def restart(stack: Stack, *, wait_s: float = BACK_WITHIN_S) -> Away:
    """Restart the embedded broker, and wait until as many devices are connected as before."""
    port = stack.endpoints.broker_device_port
    before, began = connections(port), time.monotonic()
    stack.restart_broker()
    broker_s = time.monotonic() - began
    back = wait_until(lambda: connections(port) >= before, timeout_s=wait_s)
    return Away(before, connections(port), broker_s, time.monotonic() - began if back else None)


def connections(port: int) -> int:
    """Return how many connections to a local port are established."""
    found = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            found += state == "01" and int(local.rpartition(":")[2], 16) == port
    return found


def _given_at_start(pki: Path) -> bool:
    """Whether the broker is the embedded one and not running: it starts with what there is."""
    theirs = BROKER_URL in os.environ or bool(os.environ.get("VESTIBULE_DSN_INGEST"))
    if theirs or pki.absolute() != home() / "pki":
        return False
    return not any(each.running for each in Stack(home()).status() if each.name == "broker")


def _demand_trust(trust: Trust, percent: float) -> None:
    if trust.share * 100 >= percent:
        return
    _print_names(trust.stragglers)
    raise RolloverError(
        f"{_trust_words(trust)}, {percent:g} % are needed: wait for the rest, or --force"
    )


def _print_names(devices: tuple[str, ...] | list[str]) -> None:
    for device in devices[:_MOST_NAMED]:
        print(f"  {device}")
    if len(devices) > _MOST_NAMED:
        print(f"  and {len(devices) - _MOST_NAMED} more")


def _trust_words(trust: Trust) -> str:
    return f"{trust.proved} of {trust.seen} devices seen in 30 days have proved it"


def _key_words(files: Files, generation: rules.Generation) -> str:
    if generation.kind is not Kind.ROOT or generation.state is State.GONE:
        return ""
    key = files.directory / "offline" / f"{generation.name}.key"
    if not key.exists():
        return "its key was not kept" if files.roots_forgotten else "its key is not here"
    encrypted = b"ENCRYPTED" in key.read_bytes()
    return f"its key is still here{'' if encrypted else ', UNENCRYPTED'}: take it away"


def _forgotten_words(directory: Path) -> str:
    return (
        "made without `vestibule ca init`, for an embedded deployment.\n"
        "  Its roots' keys were not kept: nobody has them, and its devices can never be moved to\n"
        "  other authorities. For a fleet that is to stay, and best before a device is enrolled\n"
        "  (those that are have to be enrolled anew): stop `vestibule serve`, then\n"
        f"  `vestibule services down`, move {directory} away, and `vestibule ca init`"
    )


def _ends_words(path: Path, now: datetime) -> str:
    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return f"until {ends:%Y-%m-%d}, {(ends - now).days} days"


def _crl_words(authority: Authority, now: datetime) -> str:
    content = (authority.directory / bundles.REVOKED).read_bytes()
    age = now.timestamp() - (authority.directory / bundles.REVOKED).stat().st_mtime
    ends = valid_until(content)
    left = f"valid until {ends:%Y-%m-%d %H:%M}" if ends > now else "EXPIRED"
    return f"{len(listed_serials(content))} serials, {age / 3600:.0f} h old, {left}"


async def _show_devices(connection: asyncpg.Connection, now: datetime) -> None:
    rows = await connection.fetch(
        "select state, count(*) as number from certificates group by state order by state"
    )
    print("device certificates")
    print("  " + (", ".join(f"{row['number']} {row['state']}" for row in rows) or "none"))
    soon = await connection.fetch(
        "select d.device, max(c.not_after) as ends from certificates c "
        "join devices d on d.id = c.device_id where c.state = any($1) and d.admitted "
        "and c.revoked_at is null group by d.device order by ends limit 5",
        LIVE,
    )
    for row in soon:
        days = (row["ends"] - now).days
        print(f"  {row['device']} until {row['ends']:%Y-%m-%d}, {days} days")


async def _held(connection: asyncpg.Connection, authority: Authority, now: datetime) -> list[str]:
    leaving = _leaving(authority.files.generations)
    names = [d.name for d in authority.described() if d.name.split()[0] in leaving]
    return await holders(connection, names, now=now)


def _leaving(generations: rules.Generations) -> list[str]:
    return [g.name for g in generations if g.state is State.LEAVING]


def _next_root_spki(authority: Authority) -> bytes:
    return authority.spki_of(rules.next_root(authority.files.generations).name)


def _password(*, new: bool = False) -> bytes:
    return password("the roots' password", variable=PASSWORD_FILE, new=new)


def _opening(files: Files, root: rules.Generation, options: argparse.Namespace) -> bytes:
    """Return the password once it has opened the root's key: nothing is begun without it."""
    if files.roots_forgotten:
        raise AuthorityError(
            f"the authority in {files.directory} was {_forgotten_words(files.directory)}"
        )
    if not (_keys(options) / f"{root.name}.key").exists():
        raise AuthorityError(f"{root.name}.key is not in {_keys(options)}: name its folder, --keys")
    password = _password()
    files.root_signer(root.name, keys=_keys(options), password=password)
    return password


def _keys(options: argparse.Namespace) -> Path:
    keys: Path | None = options.keys
    return keys or options.directory / "offline"


def _database() -> AbstractAsyncContextManager[asyncpg.Connection]:
    return database(deployment(start=False).owner_dsn.reveal(), timeout_s=10)


@asynccontextmanager
async def _acting(
    act: str, now: datetime, detail: Mapping[str, object] | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """Let an act be done and written to the audit, in one transaction."""
    async with _database() as connection, connection.transaction():
        await record(connection, actor="command", act=act, detail=detail, now=now)
        yield connection


def _now() -> datetime:
    return datetime.now(UTC)


def _default_directory() -> Path:
    configured = os.environ.get("VESTIBULE_PKI")
    return Path(configured) if configured else home() / "pki"


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("ca", __doc__)
    parser.add_argument(
        "--directory",
        type=Path,
        default=_default_directory(),
        help="the authority's files (default: VESTIBULE_PKI, or pki in VESTIBULE_HOME)",
    )
    parser.set_defaults(action=show)
    commands = Verbs[Action](parser, "COMMAND", required=False)
    commands.add("show", "what there is, who trusts it, what ends when (the default)", show)
    made = commands.add("init", "make roots and authorities; the roots' keys encrypted", init)
    made.add_argument(
        "--directory", type=Path, default=argparse.SUPPRESS, help="where to make them; as above"
    )
    made = commands.add(
        "issue-intermediate", "begin a new authority of one kind", issue_intermediate
    )
    made.add_argument(
        "kind", choices=(Kind.DEVICE.value, Kind.SERVICE.value), help="whose certificates it signs"
    )
    made.add_argument("--keys", type=Path, help="the folder with the present root's key")
    made = commands.add("install", "give the broker its files: a planned restart", install)
    made.add_argument("--done", action="store_true", help="a broker of yours has them now")

    moving = commands.add("rollover", "move the fleet to what was begun")
    steps = Verbs[Action](moving, "STEP")
    made = steps.add("start", "make authorities below the next root", start)
    made.add_argument("--keys", type=Path, help="the folder with the next root's key")
    steps.add("status", "how far it is, and who lags behind", status)
    for name, act, text in (
        ("switch", switch, "let what was begun sign"),
        ("finish", finish, "trust what is leaving no longer"),
    ):
        made = steps.add(name, text, act)
        made.add_argument("--force", action="store_true", help="whoever lags behind is left out")
        made.add_argument(
            "--percent",
            type=float,
            default=NEEDED_PERCENT,
            help="of the devices seen in 30 days must have proved trust (default: 99)",
        )
    return parser
