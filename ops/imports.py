"""`vestibule import pos FILE`: sales from the tills.

The file is CSV with the columns site,transaction,at,kind,amount,units: `site` a site's ref, `at`
the till's time (with offset, or local to the site), `kind` sale, return, pickup or void, `amount`
ex VAT in the site's currency. The same file again changes nothing.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from ops.deployment import deployment
from server.insight.pos import import_pos


def main(argv: list[str]) -> int:
    """Import, or with --dry-run say what would be; exit code 1 if lines are wrong."""
    parser = argparse.ArgumentParser(
        prog="vestibule import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("pos",), help="sales from the tills")
    parser.add_argument("file", type=Path, help="CSV, columns as above")
    parser.add_argument("--organisation", help="its ref: only its sites may be named")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--skip-bad", action="store_true", help="import the lines that are right")
    options = parser.parse_args(argv)
    try:
        report = asyncio.run(
            import_pos(
                deployment().owner_dsn.reveal(),
                options.file,
                dry_run=options.dry_run,
                organisation=options.organisation,
                skip_bad=options.skip_bad,
            )
        )
    except (OSError, UnicodeDecodeError) as error:
        print(f"vestibule import: {options.file}: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines()))
    return 1 if report.errors else 0
