"""`vestibule config` and `vestibule command`: what devices are to be, and to do.

`vestibule config show DEVICE` says of each setting its value, why it is so, and what became of it;
`config set` changes one layer. `vestibule command ask` tells devices to do something once, and
`command list`, `show`, `file` and `cancel` follow it. Every act is audited.
"""

import argparse
import asyncio
import sys
from datetime import UTC, datetime

import asyncpg

from ops.deployment import Action, actor, carry_out, owner_of
from ops.keys import span
from ops.people import organisation_of
from ops.words import Verbs, parser_of
from protocol.settings import TABLE
from server.commands import orders
from server.commands.life import KINDS
from server.commands.orders import Asked, Command
from server.desired import settings
from server.desired.layers import Scope, Source
from server.errors import RefusedError

_SCOPES = [scope.value for scope in Scope if scope is not Scope.DEFAULT]


def main(argv: list[str]) -> int:
    """Run the subcommand in one transaction; `argv` begins with `config` or `command`."""
    name, *rest = argv
    parser = _config() if name == "config" else _command()
    asyncio.run(carry_out(parser.parse_args(rest)))
    return 0


def _config() -> argparse.ArgumentParser:
    parser = parser_of("config", __doc__)
    verbs = Verbs[Action](parser, "show|layers|set")
    one = verbs.add("show", "a device's settings, why they are so, what became of them", _show)
    one.add_argument("device", help="its id")
    one = verbs.add("layers", "who has ever said something of settings", _layers)
    one.add_argument("organisation", help="its name or ref")
    one = verbs.add("set", "change some settings of one layer", _set)
    one.add_argument("organisation", help="its name or ref")
    one.add_argument("scope", choices=_SCOPES, help="whose layer")
    one.add_argument("of", help="a site's ref, a device's id, a model; '-' for the organisation")
    one.add_argument("values", nargs="+", metavar="KEY=VALUE", help="KEY= takes it out")
    one.add_argument("--reason", default="", help="owed with --override-freeze")
    _overriding(one)
    one.add_argument("--dry-run", action="store_true", help="only say whom it would reach")
    return parser


def _command() -> argparse.ArgumentParser:
    parser = parser_of("command", __doc__)
    verbs = Verbs[Action](parser, "ask|list|show|file|cancel")
    one = verbs.add("ask", "tell devices to do something, once", _ask)
    one.add_argument("organisation", help="its name or ref")
    one.add_argument("kind", choices=list(KINDS), help="what is to be done")
    one.add_argument("--device", action="append", default=[], help="this one (may be repeated)")
    one.add_argument("--site", help="all of this site; neither: all there are")
    one.add_argument("--reason", default="", help="owed for a reboot where the store is open")
    one.add_argument("--within", type=span, metavar="SPAN", help="or not at all: 30m, 12h, 2d")
    one.add_argument("--lines", type=int, default=100, help="of a log (default: 100)")
    _overriding(one)
    one.add_argument("--dry-run", action="store_true", help="only say whom it would reach")
    one = verbs.add("list", "the last commands", _list)
    one.add_argument("organisation", help="its name or ref")
    one.add_argument("--device", help="of this one alone")
    for name, action, said in (
        ("show", _one, "one command and its outcome"),
        ("file", _file, "write what a device sent with it (gzip) to standard output"),
        ("cancel", _cancel, "take back what has not begun"),
    ):
        verbs.add(name, said, action).add_argument("command", help="its ref, cmd-…")
    return parser


def _overriding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--override-freeze", action="store_true", help="also while a freeze is on; say --reason"
    )


# -- settings ------------------------------------------------------------------------------------


async def _show(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await owner_of(connection, "devices", "device", options.device)
    found = await settings.configuration(
        connection, organisation, options.device, now=datetime.now(UTC)
    )
    said = "never" if found.reported_at is None else f"{found.reported_at:%F %R} UTC"
    print(f"{options.device}: version {found.version}, heard of it {said}")
    for key, each in found.states.items():
        here, without = each.merged.here, each.merged.without
        has = "" if each.reported in (None, here.value) else f", it has {each.reported}"
        code = f" ({each.code})" if each.code else ""
        print(f"  {key:<14} {here.value!s:<24} {each.standing.value}{code}{has}")
        print(f"  {'':<14} from {_from(here)}; without that {without.value}")


def _from(source: Source) -> str:
    by = "" if source.entry is None else f", by {source.entry.by}"
    return f"{source.scope.value} {source.of}".strip() + by


async def _layers(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await organisation_of(connection, options.organisation)
    for held in await settings.listed(connection, organisation):
        said = ", ".join(f"{key} = {each.value}" for key, each in held.entries.items())
        print(f"{held.ref} (version {held.version}): {said or 'nothing'}")


async def _set(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await organisation_of(connection, options.organisation)
    of = "" if options.of == "-" else options.of
    place = await settings.place(connection, organisation, options.scope, of)
    values, now = dict(map(_pair, options.values)), datetime.now(UTC)
    seen = await settings.preview(connection, organisation, place, values, now=now)
    print(f"{seen.devices} devices, of which {seen.changed} get another value")
    if not options.dry_run:
        held = await settings.edit(
            *(connection, organisation, place, values),
            seen=None,
            reason=options.reason,
            override_freeze=options.override_freeze,
            actor=actor(),
            now=now,
        )
        print(f"{held.ref} has version {held.version}")


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RefusedError("bad_value", f"expected KEY=VALUE, got {text!r}")
    setting = TABLE.get(key)
    if not value:
        return key, None
    number = setting is not None and isinstance(setting.default, int) and value.isdecimal()
    return key, int(value) if number else value


# -- commands ------------------------------------------------------------------------------------


async def _ask(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await organisation_of(connection, options.organisation)
    asked = Asked(
        options.kind,
        tuple(options.device),
        options.site,
        options.reason,
        options.within,
        options.lines,
        override_freeze=options.override_freeze,
    )
    now = datetime.now(UTC)
    found = await orders.reached(connection, organisation, asked, now=now)
    for site, number in found.sites.items():
        print(f"  {site or 'standing nowhere'}: {number}")
    print(f"{len(found.devices)} devices, {found.left_out} left out; "
          f"open now: {', '.join(found.open_now) or 'none'}")  # fmt: skip
    for each in found.frozen:
        print(f"  frozen by {each.name!r} ({each.ref})")
    if not options.dry_run:
        batch = await orders.ask(connection, organisation, asked, actor=actor(), now=now)
        print(f"{batch.ref} asked")


async def _list(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await organisation_of(connection, options.organisation)
    for each in await orders.listed(connection, organisation, device=options.device):
        print(_line(each))


async def _one(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await owner_of(connection, "commands", "ref", options.command)
    found = await orders.find(connection, organisation, options.command)
    print(_line(found))
    for name, value in found.result.items():
        print(f"  {name}: {value}")


async def _file(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await owner_of(connection, "commands", "ref", options.command)
    _, content = await orders.file_of(connection, organisation, options.command)
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


async def _cancel(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await owner_of(connection, "commands", "ref", options.command)
    found = await orders.cancel(
        connection, organisation, options.command, actor=actor(), now=datetime.now(UTC)
    )
    print(_line(found))


def _line(found: Command) -> str:
    code = f" ({found.code})" if found.code else ""
    return (
        f"{found.ref}  {found.asked_at:%F %R}  {found.device}  {found.kind}: "
        f"{found.state.value}{code}"
    )
