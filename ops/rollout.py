"""`vestibule rollout`: how something new reaches devices, from the plan to its end.

    vestibule rollout bundle 'Agent 2.5' agent=2.5.0   # releases that go together, in this order
    vestibule rollout policy > policy.json             # what can be said, with its defaults
    vestibule rollout plan own bundle-7k2m9qxw --policy policy.json --dry-run
    vestibule rollout plan own bundle-7k2m9qxw --policy policy.json
    vestibule rollout plan own --settings change.json  # or settings: see ops/FIRMWARE.md
    vestibule rollout submit rollout-3fpn4k7m
    vestibule rollout approve rollout-3fpn4k7m         # somebody else, above the blast radius
    vestibule rollout watch rollout-3fpn4k7m

A rollout goes from wave to wave by itself, and halts by itself where too much fails. `show` says
how far it is from that, `explain` why a device does not have it yet. What failed is acknowledged by
`resume`, and taken back by `revert`; `freeze` says when nothing is changed at all.

`watch` follows a rollout until it ends, or has halted and waits for people. Its exit code says how:
0 completed, 3 completed with stragglers (some never appeared or rejected it, or nobody has
confirmed it), 4 halted, 5 taken back, 6 cancelled. Every act is audited
as `command <your account>`.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from rich.console import Console, RenderableType
from rich.live import Live

from ops import rollout_tables as tables
from ops.deployment import acting, actor, database, deployment, owner_of
from ops.people import organisation_of
from ops.words import Verbs, parser_of
from server.api import freezes as freeze_rows
from server.api import releases as release_rows
from server.api import rollout_rows as rows
from server.errors import NotFoundError
from server.firmware import acts, bundles, drafting, freezes, joining, members, planning, reads
from server.firmware.change import read_settings
from server.firmware.life import State as Stage
from server.firmware.policy import OnHalt, Policy, read_policy, write_policy
from server.firmware.reads import One
from server.firmware.waves import State
from server.fleet.checks import FieldError

Action = Callable[[asyncpg.Connection, argparse.Namespace], Awaitable[int]]
HOW_IT_ENDED = {
    State.COMPLETED: 0,
    State.COMPLETED_WITH_STRAGGLERS: 3,
    State.HALTED: 4,
    State.REVERTED: 5,
    State.CANCELLED: 6,
}
"""Exit codes of `watch`; 1 and 2 are those of every command."""
WIDTH = 150
"""Columns where the output is no terminal."""


def main(argv: list[str]) -> int:
    """Run the subcommand; all but `watch` in one transaction."""
    return asyncio.run(_run(_parser().parse_args(argv)))


async def _run(options: argparse.Namespace) -> int:
    dsn, action = deployment(database_alone=True).owner_dsn.reveal(), options.action
    opened = database(dsn) if action is _watch else acting(dsn)
    async with opened as connection:
        code: int = await action(connection, options)
    return code


# -- the words -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("rollout", __doc__)
    verbs = Verbs[Action](parser, "bundle|plan|list|show|watch|...")

    def verb(name: str, summary: str, action: Action) -> argparse.ArgumentParser:
        made = verbs.add(name, summary, action)
        if name != "policy":
            made.add_argument("--json", action="store_true", help="as the API answers it")
        return made

    bundling = verb("bundle", "make a bundle of releases: what a rollout brings", _bundle_made)
    bundling.add_argument("name", help="what people call it: 'Agent 2.5'")
    bundling.add_argument(
        "releases", nargs="+", type=_part, metavar="COMPONENT=VERSION", help="in their order"
    )
    verb("bundles", "what there is to roll out", _bundles)
    verb("policy", "print a whole policy with its defaults, as JSON", _policy)
    _planning(verb("plan", "plan a rollout: who, when, who not and why, and what it takes", _plan))
    listing = verb("list", "rollouts of an organisation, the latest first", _list)
    listing.add_argument("organisation", help="its name or ref")
    listing.add_argument("--open", action="store_true", help="those alone that are not over")
    _showing(_one(verb("show", "one rollout: waves, guards, failures, sites, next window", _show)))
    _acting(verb)
    _joining(_one(verb("join", "let devices join the tail of what runs", _join)))
    watching = _one(verb("watch", "follow it live until it ends; the exit code says how", _watch))
    watching.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="(default: 2)"
    )
    explaining = verb("explain", "why a device does not have it yet, and until when", _explain)
    explaining.add_argument("device", help="its id")
    explaining.add_argument("--rollout", help="of this one (default: what is under way, or last)")
    _freezing(verbs.add("freeze", "when nothing is changed: list, add, end"))
    return parser


def _acting(verb: Callable[[str, str, Action], argparse.ArgumentParser]) -> None:
    _one(verb("submit", "ask for approval", _doing(acts.submit)))
    approve = _doing(acts.approve, "starts_at")
    approving = _one(verb("approve", "let it begin, now or later", approve))
    approving.add_argument(
        "--at", dest="starts_at", type=_instant, metavar="TIME", help="2026-03-02T22:00+01:00"
    )
    _one(verb("start", "begin now what was approved for later", _doing(acts.start)))
    for name, summary, action in (
        ("pause", "offer nothing more; what is on its way goes on", _doing(acts.pause, "reason")),
        ("resume", "go on, acknowledging what has failed until now", _doing(acts.resume, "reason")),
        ("cancel", "end it; what installs already goes on", _doing(acts.cancel, "reason")),
        ("revert", "take devices back to what they ran, by a rollout of its own", _revert),
    ):
        reasoned = _one(verb(name, summary, action))
        reasoned.add_argument("--reason", required=True, help="kept in its history")
        if action is _revert:
            reasoned.add_argument(
                "--failed", action="store_true", help="those alone that failed, timed out, or lost"
            )


def _joining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", nargs="+", metavar="DEVICE", help="their ids")


def _one(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("rollout", help="its ref, rollout-…")
    return parser


def _planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("organisation", help="its name or ref")
    parser.add_argument("bundle", nargs="?", help="its ref, bundle-…, or its name")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON instead of a bundle: "
                        '{"values": {"health_s": 300}, "scope": "site", "of": "site-…"}; '
                        "scope organisation (default), model, site, or device")  # fmt: skip
    parser.add_argument("--questionnaire", metavar="REF", help="a version for kiosks, instead")
    parser.add_argument("--name", help="of the rollout (default: the bundle's)")
    parser.add_argument("--filter", default="", help="of devices, as in lists: 'model = \"DC2\"'")
    parser.add_argument("--segment", help="ref of a segment whose devices, segment-…")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="JSON; what it leaves out is "
                        "as by default")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show it, and keep nothing")


def _showing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="also what was planned")
    parser.add_argument("--history", action="store_true", help="also what happened")
    parser.add_argument("--devices", action="store_true", help="also each device")
    parser.add_argument(
        "--state",
        action="append",
        default=[],
        type=Stage,
        metavar="STATE",
        help="of devices: 'failed', 'lost', 'waiting window', ... (may be repeated)",
    )


def _freezing(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="list|add|end")
    listing = verbs.add_parser("list", help="freezes that are on or still to come")
    listing.add_argument("organisation", help="its name or ref")
    listing.add_argument("--past", action="store_true", help="those that are over, too")
    listing.set_defaults(action=_freezes)
    adding = verbs.add_parser("add", help="let nothing be installed for a time")
    adding.add_argument("organisation", help="its name or ref")
    adding.add_argument("name", help="what people call it: 'Black Friday'")
    adding.add_argument("--until", required=True, type=_instant, metavar="TIME", help="its end")
    adding.add_argument("--from", type=_instant, metavar="TIME", dest="since", help="(now)")
    adding.add_argument("--sites", default="", help="a filter: 'site.region = North' (all)")
    adding.add_argument("--reason", required=True, help="why")
    adding.set_defaults(action=_freeze)
    ending = verbs.add_parser("end", help="end one of your own early")
    ending.add_argument("freeze", help="its ref, freeze-…")
    ending.set_defaults(action=_thaw)
    for each in (listing, adding, ending):
        each.add_argument("--json", action="store_true", help="as the API answers it")


def _instant(text: str) -> datetime:
    """Read a time with its offset."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from error
    if found.tzinfo is None:
        clock = text if "T" in text or " " in text else f"{text}T00:00"
        raise argparse.ArgumentTypeError(f"{text} needs an offset, as {clock}+01:00 or {clock}Z")
    return found


def _part(text: str) -> tuple[str, str]:
    """Read `agent=2.5.0`."""
    component, equals, version = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected COMPONENT=VERSION, got {text!r}")
    return component, version


# -- looking ---------------------------------------------------------------------------------------


async def _policy(_: asyncpg.Connection, __: argparse.Namespace) -> int:
    print(msgspec.json.format(write_policy(Policy()), indent=2))
    return 0


async def _bundle_made(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    given = connection, options.name, options.releases
    ref = await bundles.make(*given, actor=actor(), now=_now())
    made = await reads.bundles(connection, ref=ref)
    _print(options, tables.bundles(made), release_rows.bundle_row(made[0]))
    return 0


async def _bundles(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    found = await reads.bundles(connection)
    _print(options, tables.bundles(found), [release_rows.bundle_row(each) for each in found])
    return 0


async def _plan(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation, now = await organisation_of(connection, options.organisation), _now()
    policy = Policy() if options.policy is None else read_policy(options.policy.read_bytes())
    bundle, change = None, None
    if [options.bundle, options.settings, options.questionnaire].count(None) != 2:
        raise FieldError("bundle", "name a bundle, --settings or --questionnaire, one of them")
    if options.settings is not None:
        change = read_settings(options.settings.read_bytes())
    elif options.bundle is not None:
        bundle = await _bundle_named(connection, options.bundle)
    given = "" if bundle is None else bundle.ref, options.filter, options.segment, policy
    asked = planning.Asked(*given, change=change, questionnaire=options.questionnaire)
    if options.dry_run:
        dry = await planning.dry_run(connection, organisation, asked, now=now)
        told = drafting.told(dry)
        _print(options, tables.plan(told, bundle, change), rows.plan_of(told))
        return 0
    name = options.name or (
        tables.said_of(change, options.questionnaire) if bundle is None else bundle.name
    )
    made = await drafting.draft(connection, organisation, name, asked, actor=actor(), now=now)
    told = drafting.told(made.dry)
    line = rows.row_of(await reads.find(connection, organisation, made.ref))
    kept = {"rollout": made.ref, "summary": line, "plan": rows.plan_of(told)}
    _print(options, tables.plan(told, bundle, change), kept)
    if not options.json:
        print(f"{made.ref} is planned; vestibule rollout submit {made.ref}")
    return 0


async def _list(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation = await organisation_of(connection, options.organisation)
    found = await reads.listed(connection, organisation, over=False if options.open else None)
    _print(options, tables.lines(found), [rows.row_of(each) for each in found])
    return 0


async def _show(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    (_, organisation, ref), now = await _given(connection, options), _now()
    found = await reads.one(connection, organisation, ref, now=now)
    shown: list[RenderableType] = [tables.one(found, now=now)]
    said: dict[str, Any] = {"rollout": rows.detail_of(found)}
    if options.plan:
        told = await drafting.told_of(connection, await reads.load(connection, organisation, ref))
        said["plan"] = None if told is None else rows.plan_of(told)
        shown += [] if told is None else [tables.plan(told, found.bundle, found.line.settings)]
    if options.history:
        happened = await reads.history(connection, organisation, ref)
        said["history"] = [rows.history_row(each) for each in happened]
        shown.append(tables.history(happened))
    if options.devices or options.state:
        found_in = await members.members(
            connection, organisation, ref, now=now, states=options.state
        )
        said["executions"] = [release_rows.execution_row(each) for each in found_in]
        shown.append(tables.devices(found_in))
    if options.json:
        _say(said if len(said) > 1 else said["rollout"])
    else:
        _console().print(*shown, sep="\n")
    return 0


async def _explain(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation = await owner_of(connection, "devices", "device", options.device)
    if options.rollout is not None:
        given = connection, organisation, options.rollout, options.device
        explained = await members.explain(*given, now=_now())
    else:
        running = await members.of_device(connection, organisation, options.device, now=_now())
        if running.now is None:
            raise NotFoundError(f"{options.device} was never in a rollout: name one by --rollout")
        explained = running.now
    _print(options, tables.why(explained), release_rows.explanation(explained))
    return 0


async def _watch(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    (_, organisation, _), console = await _given(connection, options), _console()

    async def rest() -> None:
        await asyncio.sleep(options.every)

    async def until_ended(show: Callable[[One], None]) -> One:
        return await follow(connection, organisation, options.rollout, show=show, rest=rest)

    if options.json:
        found = await until_ended(lambda one: _say(rows.detail_of(one), indent=0))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            found = await until_ended(
                lambda one: live.update(tables.one(one, now=_now()), refresh=True)
            )
    else:
        found = await until_ended(lambda one: console.print(tables.sentence(one, now=_now())))
    if not options.json:
        console.print(tables.ending(found))
    return HOW_IT_ENDED[found.line.state]


async def follow(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    show: Callable[[One], None],
    rest: Callable[[], Awaitable[None]],
) -> One:
    """Show a rollout each time it has changed, until it ends or waits, halted, for people."""
    seen = ""
    while True:
        position = await reads.position(connection, organisation, ref)
        if position != seen:
            found = await reads.one(connection, organisation, ref, now=_now())
            show(found)
            if found.ended:
                return found
            seen = position
        await rest()


# -- acting ----------------------------------------------------------------------------------------


def _doing(act: Callable[..., Awaitable[None]], *said: str) -> Action:
    """Return what a verb does that is one act, told these of its options."""

    async def do(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
        given = await _given(connection, options)
        told = {name: getattr(options, name) for name in said}
        await act(*given, **told, actor=actor(), now=_now())
        return await _done(*given, options)

    return do


async def _revert(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    given = await _given(connection, options)
    how = OnHalt.REVERT_FAILED if options.failed else OnHalt.REVERT_ALL
    back = await acts.revert(*given, how, reason=options.reason, actor=actor(), now=_now())
    if not options.json:
        print(f"{back} takes it back; vestibule rollout watch {options.rollout}")
    return await _done(*given, options)


async def _join(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    given = await _given(connection, options)
    found = await joining.ask(*given, options.devices, actor=actor(), now=_now())
    if options.json:
        _say(rows.joined_of(options.rollout, found))
        return 0
    print(f"{len(found.devices)} join the tail: {', '.join(found.devices) or 'nobody'}")
    for each in found.left_out:
        print(f"  not {each.device}: {each.why}")
    return 0


async def _done(
    connection: asyncpg.Connection, organisation: int, ref: str, options: argparse.Namespace
) -> int:
    """Show how a rollout stands now."""
    found = await reads.one(connection, organisation, ref, now=_now())
    _print(options, tables.sentence(found, now=_now()), rows.detail_of(found))
    return 0


async def _freezes(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation = await organisation_of(connection, options.organisation)
    found = await freezes.listed(connection, organisation, now=_now(), past=options.past)
    _print(options, tables.freezes(found), [freeze_rows.row_of(each) for each in found])
    return 0


async def _freeze(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation = await organisation_of(connection, options.organisation)
    wanted = freezes.Wanted(
        options.name, options.reason, options.until, options.since, options.sites
    )
    made = await freezes.add(connection, organisation, wanted, actor=actor(), now=_now())
    _print(options, tables.freezes([made]), freeze_rows.row_of(made))
    return 0


async def _thaw(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    organisation = await owner_of(connection, "freezes", "ref", options.freeze)
    ended = await freezes.end(connection, organisation, options.freeze, actor=actor(), now=_now())
    _print(options, tables.freezes([ended]), freeze_rows.row_of(ended))
    return 0


# -- what all of them need -------------------------------------------------------------------------


async def _given(
    connection: asyncpg.Connection, options: argparse.Namespace
) -> tuple[asyncpg.Connection, int, str]:
    """Return the rollout that is named, as acts are told. Raises NotFoundError."""
    ref: str = options.rollout
    return connection, await owner_of(connection, "rollouts", "ref", ref), ref


async def _bundle_named(connection: asyncpg.Connection, wanted: str) -> reads.Bundle:
    """Return a bundle by its ref or name. Raises NotFoundError."""
    for each in await reads.bundles(connection):
        if wanted in (each.ref, each.name):
            return each
    raise NotFoundError(f"no bundle {wanted!r}; `vestibule rollout bundles` shows them")


def _print(options: argparse.Namespace, shown: RenderableType, said: object) -> None:
    """Print something as a table, or as the API answers it."""
    if options.json:
        _say(said)
    else:
        _console().print(shown)


def _say(said: object, *, indent: int = 2) -> None:
    encoded = msgspec.json.encode(said)
    print((msgspec.json.format(encoded, indent=indent) if indent else encoded).decode(), flush=True)


def _console() -> Console:
    width = None if sys.stdout.isatty() else WIDTH
    return Console(width=width, markup=False, highlight=False)


def _now() -> datetime:
    return datetime.now(UTC)
