"""`vestibule site list|import|export`: sites, doors and spots as files.

One row a spot, CSV in UTF-8, with the columns

    site_ref,site,region,address,time_zone,currency,hours,opens_on,closes_on,
    door_ref,door,behind,spot_ref,spot,kind,purpose,height_cm

of which a file may have a part. Hours are written like `Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off`.
What `export` writes, `import` takes in as the same.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from ops.deployment import Deployment
from server.errors import RefusedError
from server.fleet import exchange, organisations
from server.fleet.organisations import Organisation
from server.fleet.table import COLUMNS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(site: "Commands") -> None:
    """Add the commands to `vestibule site`."""
    listing = site.add_parser("list", help="list sites and spots")
    listing.add_argument("--organisation", default=None, help="its name or ref; default: all")
    listing.set_defaults(act=_list)
    taking = site.add_parser(
        "import",
        help="take sites, doors and spots in from a file",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    taking.add_argument("file", type=Path, help=f"CSV, columns of {','.join(COLUMNS)}")
    taking.add_argument("--organisation", required=True, help="its name or ref; made if it is new")
    taking.add_argument("--dry-run", action="store_true", help="say what would be done")
    taking.set_defaults(act=_import)
    giving = site.add_parser("export", help="write a file that is taken in as the same")
    giving.add_argument("--organisation", required=True, help="its name or ref")
    giving.add_argument("--without-refs", action="store_true", help="to make the same elsewhere")
    giving.add_argument("--to", type=Path, help="a file; default: standard output")
    giving.set_defaults(act=_export)


async def _list(connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment) -> int:
    for row in await connection.fetch(
        "select o.name as organisation, s.ref, s.name, s.time_zone, p.ref as spot, p.name as at, "
        "p.kind from sites s join organisations o on o.id = s.organisation_id "
        "left join spots p on p.site_id = s.id where $1::text is null or $1 in (o.name, o.ref) "
        "order by o.name, s.name, p.name",
        options.organisation,
    ):
        print("\t".join("" if value is None else str(value) for value in row.values()))
    return 0


async def _import(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    now = datetime.now(UTC)
    whole = connection.transaction()
    await whole.start()
    organisation = await _named(connection, options.organisation)
    if organisation is None:
        wanted = Organisation(options.organisation)
        made = await organisations.add(connection, wanted, actor="command", now=now)
        organisation = made.id
        print(f"organisation added\t{made.ref}\t{wanted.name}")
    found = await exchange.take_in(
        connection,
        organisation,
        options.file.read_bytes(),
        actor="command",
        now=now,
        dry_run=options.dry_run,
    )
    for deed in found.deeds if not found.errors else ():
        print(f"{deed.act}\t{deed.ref if not options.dry_run else ''}\t{deed.name}\t{deed.fields}")
    for error in found.errors:
        column = f"{error.column}: " if error.column else ""
        print(f"{options.file}:{error.line}: {column}{error.why}", file=sys.stderr)
    if options.dry_run or found.errors:
        await whole.rollback()
    else:
        await whole.commit()
    if found.errors:
        print(f"{len(found.errors)} errors: nothing is written", file=sys.stderr)
        return 1
    print(f"{found.rows} rows, {len(found.deeds)} changes", file=sys.stderr)
    return 0


async def _export(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    organisation = await _named(connection, options.organisation)
    if organisation is None:
        raise RefusedError("no_organisation", f"no organisation {options.organisation!r}")
    data = await exchange.give_out(
        connection, organisation, now=datetime.now(UTC), refs=not options.without_refs
    )
    if options.to is not None:
        options.to.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)
    return 0


async def _named(connection: asyncpg.Connection, name: str) -> int | None:
    found: int | None = await connection.fetchval(
        "select id from organisations where name = $1 or ref = $1 order by name = $1 desc", name
    )
    return found
