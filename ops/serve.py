"""`vestibule serve`: run the server in this process until it is told to stop.

Without VESTIBULE_DSN_INGEST it brings up the embedded services and migrates them first; these and
the server then listen on this machine alone, on ports of their own. For devices elsewhere, name a
database, a broker and addresses in the VESTIBULE_* settings listed in `server/config.py`.
"""

import argparse
import asyncio
import os
import sys
from dataclasses import replace

import uvloop

from ops.deployment import deployment
from server.app import run
from server.config import ROLES, Settings, read_roles
from server.db.migrate import migrate
from server.log import configure


def main(argv: list[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="vestibule serve", description=__doc__)
    parser.add_argument(
        "--roles", help=f"comma-separated, of {', '.join(sorted(ROLES))} (default all)"
    )
    options = parser.parse_args(argv)
    configure()
    if os.environ.get("VESTIBULE_DSN_INGEST"):
        settings = Settings.from_environment()
    else:
        found = deployment()
        asyncio.run(migrate(found.owner_dsn.reveal()))
        settings = found.settings
    if options.roles:
        settings = replace(settings, roles=read_roles(options.roles))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, ready=lambda: _say_where(settings)))
    return 0


def _say_where(settings: Settings) -> None:
    """Tell who started it by hand where to look; the log is for machines."""
    if sys.stderr.isatty():
        base = settings.pages_url
        print(
            f"pages: {base}/  console: {base}/console/  technician: {base}/tech/\n"
            f"API: {base}/v1/docs\n"
            f"devices enrol at {settings.enrolment_url}; Ctrl-C stops the server, "
            "`vestibule services down` its database and broker",
            file=sys.stderr,
        )
