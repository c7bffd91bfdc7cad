"""`vestibule site|device`: the fleet's register from the command line.

Devices may come one by one or as CSV with the columns

    organisation,site,time_zone,spot,kind,serial[,model]

(kind is counter or kiosk, model what releases name as their hardware); organisations, sites and
spots that are not there yet are made. Each device's claim is printed once, for `vestibule-agent
enrol`; only its hash is kept.

Or as the manifest of a factory, whose devices carry a label and then need no claim:

    serial,model,kind,hardware_revision,setup_secret[,site][,allowed_until]
"""

import argparse
import asyncio
import csv
import getpass
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import segno

from ops import sites as site_files
from ops.admission import Follow, add_commands
from ops.deployment import Deployment, database, deployment
from ops.places import ACTOR, places
from ops.words import parser_of
from protocol.identity import DeviceId
from protocol.label import Label, LabelError, label, serial_number, typed
from server.config import Settings
from server.errors import NotFoundError, RefusedError
from server.fleet import sites
from server.fleet.hours import Opening
from server.fleet.sites import Site
from server.provisioning import manifest, renew
from server.provisioning.claims import claim_token
from server.provisioning.vouchers import withdraw_voucher

COLUMNS = ("organisation", "site", "time_zone", "spot", "kind", "serial")
ALL_COLUMNS = (*COLUMNS, "model")
MANIFEST = ",".join((*manifest.REQUIRED, *(f"[{name}]" for name in manifest.OPTIONAL)))
Action = Callable[[asyncpg.Connection, argparse.Namespace, Deployment], Awaitable[int]]


def main(argv: list[str]) -> int:
    """Run `site ...` or `device ...` in one transaction: all of it, or none."""
    options = _parser().parse_args(argv)
    return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    # a claim names the fleet's root, so there has to be one
    found = deployment(database_alone=options.act is not _add_devices)
    async with database(found.owner_dsn.reveal()) as connection:
        async with connection.transaction():
            act: Action = options.act
            code = await act(connection, options, found)
        follow: Follow | None = getattr(options, "follow", None)
        return code if code or follow is None else await follow(connection, options)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("", __doc__)
    nouns = parser.add_subparsers(required=True, metavar="site|device")

    site = nouns.add_parser("site", help="sites").add_subparsers(required=True)
    add = site.add_parser("add", help="add a site")
    add.add_argument("name", help="what people call it")
    add.add_argument("--organisation", required=True, help="its name; made if it is new")
    add.add_argument("--time-zone", required=True, help="such as Europe/Stockholm")
    add.add_argument("--currency", default="EUR", help="of its tills (default EUR)")
    add.add_argument("--opens", help="HH:MM every day (default: never closes)")
    add.add_argument("--closes", help="HH:MM; before --opens means past midnight")
    add.set_defaults(act=_add_site)
    site_files.add_commands(site)

    device = nouns.add_parser("device", help="devices").add_subparsers(required=True)
    add = device.add_parser("add", help="add one device, or a CSV of them; prints the claims")
    add.add_argument("--csv", type=Path, help=f"columns {','.join(COLUMNS)}[,model]")
    add.add_argument("--organisation", help="its name; made if it is new")
    add.add_argument("--site", help="the site's name; made if it is new")
    add.add_argument(
        "--time-zone", default="Europe/Stockholm", help="a new site's (default Europe/Stockholm)"
    )
    add.add_argument("--spot", help="the spot's name; made if it is new")
    add.add_argument(
        "--kind", choices=("counter", "kiosk"), default="counter", help="(default counter)"
    )
    add.add_argument("--serial", default="", help="what its maker calls it, if known")
    add.add_argument("--model", default="", help="such as DC2: what releases are approved for")
    add.set_defaults(act=_add_devices)
    add = device.add_parser("list", help="list devices")
    add.add_argument(
        "--expiring",
        nargs="?",
        const=14,
        type=int,
        metavar="DAYS",
        help="those whose certificate ends within so many days (14), and is not renewed",
    )
    add.set_defaults(act=_list_devices)
    add = device.add_parser("renew", help="let a device renew its certificate within a day")
    add.add_argument("device", help="such as dc-7k2m9qxw4abc")
    add.set_defaults(act=_renew)
    add = device.add_parser("import", help="allow what a factory's manifest lists")
    add.add_argument("file", type=Path, help=f"CSV, columns {MANIFEST}")
    add.add_argument("--organisation", required=True, help="its name or ref")
    add.add_argument("--dry-run", action="store_true", help="say what would be done")
    add.add_argument("--skip-bad", action="store_true", help="take the rows that are good")
    add.set_defaults(act=_import_manifest)
    add = device.add_parser("label", help="show a label's text and its QR code")
    add.add_argument("serial", help="as on the label")
    add.add_argument("--secret", help="of its label; '-' reads it without showing it")
    add.set_defaults(act=_show_label)
    assign = device.add_parser("assign", help="let a device stand at a spot from now on")
    assign.add_argument("device", help="such as dc-7k2m9qxw4abc")
    assign.add_argument("spot", help="the spot's ref, such as spot-7k2m9qxw")
    assign.add_argument("--since", type=datetime.fromisoformat, help="ISO time with offset")
    assign.set_defaults(act=_assign)
    add_commands(device)
    voucher = device.add_parser("voucher", help="technicians' vouchers")
    withdraw = voucher.add_subparsers(required=True).add_parser(
        "withdraw", help="end a voucher now; what was done before under it stays"
    )
    withdraw.add_argument("voucher", metavar="REF", help="such as voucher-7k2m9qxw")
    withdraw.set_defaults(act=_withdraw_voucher)
    return parser


async def _add_site(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    wanted = Site(options.name, options.time_zone, options.currency)
    if options.opens or options.closes:
        opens, closes = _minutes(options.opens), _minutes(options.closes)
        closes += 1440 if closes <= opens else 0
        wanted = replace(wanted, opening=Opening((((opens, closes),),) * 7))
    async with places(connection, now=datetime.now(UTC)) as made:
        organisation = await made.organisation(options.organisation)
        site = await sites.add(connection, organisation.id, wanted, **made.by)
    print(site.ref)
    return 0


def _minutes(text: str | None) -> int:
    hour, _, minute = (text or "").partition(":")
    if not (hour.isdigit() and minute.isdigit() and int(hour) < 24 and int(minute) < 60):
        raise RefusedError("bad_time", f"expected --opens and --closes as HH:MM, got {text!r}")
    return int(hour) * 60 + int(minute)


async def _add_devices(
    connection: asyncpg.Connection, options: argparse.Namespace, found: Deployment
) -> int:
    if options.csv:
        rows = _read_csv(options.csv)
    elif options.organisation and options.site and options.spot:
        rows = [{name: getattr(options, name) for name in ALL_COLUMNS}]
    else:
        raise RefusedError("usage", "give --organisation, --site and --spot, or --csv FILE")
    for device, token in await add_claimed_devices(connection, rows, found.settings):
        print(f"{device}\t{token}")
    return 0


async def _import_manifest(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    organisation = await manifest.organisation_named(connection, options.organisation)
    rows, bad = manifest.read(options.file.read_bytes())
    planned, contradicting = await manifest.plan(connection, organisation, rows)
    bad = sorted([*bad, *contradicting], key=lambda row: row.line)
    for row in bad:
        print(f"{options.file}:{row.line}: {row.why}", file=sys.stderr)
    for one in planned:
        if options.dry_run or one.deed is not manifest.Deed.NOTHING:
            print(f"{one.row.label.serial}\t{one.row.kind}\t{one.deed}")
    if bad and not options.skip_bad:
        print(f"{len(bad)} bad rows: nothing is written (--skip-bad: the rest)", file=sys.stderr)
        return 1
    if options.dry_run:
        return 0
    await manifest.carry_out(connection, organisation, planned, actor=ACTOR, now=datetime.now(UTC))
    return 0


async def _show_label(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    try:
        serial = serial_number(options.serial)
        found = None if options.secret is None else _label(serial, options.secret)
    except LabelError as error:
        raise RefusedError("bad_label", str(error)) from error
    row = await connection.fetchrow(
        "select device, kind, state, setup_sha256 from devices where serial = $1", serial
    )
    if row is None:
        raise NotFoundError(f"no device with the serial {serial!r}")
    print(f"{row['device']}\t{row['kind']}\t{row['state']}")
    if found is None:
        print("its secret is not kept here: --secret shows the label", file=sys.stderr)
        return 0
    if row["setup_sha256"] != found.secret_sha256:
        raise RefusedError("bad_secret", f"that is not the secret of {serial}")
    print(f"{found.text}\n{serial} {found.typed}")
    segno.make(found.text.upper(), error="m", micro=False).terminal(sys.stdout, compact=True)
    return 0


def _label(serial: str, secret: str) -> Label:
    """Return the label of a secret with or without its check character."""
    text = getpass.getpass("set-up secret: ") if secret == "-" else secret  # noqa: S105
    try:
        return label(serial, text)
    except LabelError:
        return typed(serial, text)


async def add_claimed_devices(
    connection: asyncpg.Connection, rows: Iterable[Mapping[str, str]], settings: Settings
) -> list[tuple[DeviceId, str]]:
    """Make each row's device with all it stands on; return their ids and claim tokens."""
    now = datetime.now(UTC)
    found: list[tuple[DeviceId, str]] = []
    async with places(connection, now=now) as made:
        for row in rows:
            organisation = (await made.organisation(row["organisation"])).id
            site = await made.site(organisation, Site(row["site"], row["time_zone"]))
            spot = await made.spot(organisation, site, name=row["spot"], kind=row["kind"])
            device_row, device = await made.device(
                organisation, kind=row["kind"], serial=row["serial"], model=row.get("model") or ""
            )
            before = await made.standing(spot.ref)
            await made.stand(device, spot.ref, since=now)
            if before is not None:
                print(f"{before} stood at {spot.facts.name}, and no longer does", file=sys.stderr)
            token = await claim_token(connection, settings, device_row, now=now)
            found.append((device, token))
    return found


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in (COLUMNS, ALL_COLUMNS):
            raise RefusedError(
                "bad_csv", f"{path}: expected {','.join(COLUMNS)}[,model], got {reader.fieldnames}"
            )
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if row["kind"] not in ("counter", "kiosk") or not all(row[c] for c in COLUMNS[:5]):
            raise RefusedError("bad_csv", f"{path}:{number}: a field is empty or kind is unknown")
    return rows


async def _list_devices(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    if options.expiring is not None:
        return await _list_expiring(connection, timedelta(days=options.expiring))
    for row in await connection.fetch(
        "select d.device, d.kind, d.state, d.serial, s.name as site, p.name as spot, "
        "max(b.last_stored) as last_stored from devices d "
        "left join assignments a on a.device_id = d.id and a.valid @> now() "
        "left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id "
        "left join boots b on b.device_id = d.id "
        "group by d.id, s.name, p.name order by s.name, p.name"
    ):
        print("\t".join("" if value is None else str(value) for value in row.values()))
    return 0


async def _list_expiring(connection: asyncpg.Connection, within: timedelta) -> int:
    for one in await renew.expiring(connection, now=datetime.now(UTC), within=within):
        seen = "never seen" if one.last_seen is None else f"last seen {one.last_seen:%F}"
        print(f"{one.device}\t{one.organisation}\tends {one.not_after:%F}\t{seen}")
    return 0


async def _renew(connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment) -> int:
    await renew.bring_forward(connection, options.device, actor=ACTOR, now=datetime.now(UTC))
    print(f"{options.device} renews when it next asks: within a day, if it is online")
    return 0


async def _withdraw_voucher(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    ref = options.voucher
    if not await withdraw_voucher(connection, ref, actor=ACTOR, now=datetime.now(UTC)):
        raise NotFoundError(f"no voucher {ref!r} that is not withdrawn")
    print(f"{ref} is withdrawn")
    return 0


async def _assign(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    since = options.since or datetime.now(UTC)
    if since.tzinfo is None:
        raise RefusedError("bad_time", "--since needs its offset, such as +01:00")
    async with places(connection, now=datetime.now(UTC)) as made:
        before = await made.standing(options.spot)
        moved = await made.stand(options.device, options.spot, since=since)
    print(f"{moved} stored rows moved with it")
    if before not in (None, options.device):
        print(f"{before} stood there, and no longer does", file=sys.stderr)
    return 0
