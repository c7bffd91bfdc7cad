"""`vestibule import pos|shifts|campaigns|rates FILE`: what other systems know.

The file is CSV with these columns:

pos        site,transaction,at,kind,amount,units
shifts     site,shift,starts,ends,role
campaigns  campaign,name,sites,from,to,channel,cost,currency,impressions
rates      day,base,quote,rate,source

`site` is a site's ref; times have an offset, or are local to the site; `kind` is sale, return,
pickup or void; amounts are ex VAT, a sale's in the site's currency. Campaigns and rates are of the
organisation that --organisation names. The same file again changes nothing.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from ops.deployment import deployment
from ops.words import parser_of
from server.insight.pos import (
    CAMPAIGNED,
    EXCHANGE,
    ROSTERS,
    TRANSACTIONS,
    Report,
    import_file,
)

WHAT = ("pos", "shifts", "campaigns", "rates")


def main(argv: list[str]) -> int:
    """Import, or with --dry-run say what would be; exit code 1 if lines are wrong."""
    parser = parser_of("import", __doc__)
    parser.add_argument("what", choices=WHAT, help="sales, rosters, campaigns, rates of exchange")
    parser.add_argument("file", type=Path, help="CSV, columns as above")
    parser.add_argument("--organisation", help="its ref: only its sites may be named")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--skip-bad", action="store_true", help="import the lines that are right")
    options = parser.parse_args(argv)
    try:
        report = asyncio.run(_import(options, deployment(database_alone=True).owner_dsn.reveal()))
    except UnicodeDecodeError as error:
        print(f"vestibule import: {options.file}: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines()))
    return 1 if report.errors else 0


async def _import(options: argparse.Namespace, dsn: str) -> Report:
    """Import a file of the kind that was named."""
    path, skip = options.file, options.skip_bad
    dry, whose = options.dry_run, options.organisation
    match options.what:
        case "shifts":
            return await import_file(
                dsn, path, ROSTERS, dry_run=dry, organisation=whose, skip_bad=skip
            )
        case "campaigns":
            return await import_file(
                dsn, path, CAMPAIGNED, dry_run=dry, organisation=whose, skip_bad=skip
            )
        case "rates":
            return await import_file(
                dsn, path, EXCHANGE, dry_run=dry, organisation=whose, skip_bad=skip
            )
        case _:
            return await import_file(
                dsn, path, TRANSACTIONS, dry_run=dry, organisation=whose, skip_bad=skip
            )
