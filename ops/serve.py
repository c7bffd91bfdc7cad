"""`vestibule serve`: run the server in this process until it is told to stop.

Without VESTIBULE_DSN_INGEST it brings up the embedded services and migrates them first. These and
the server then listen on this machine alone, on ports of their own, until `--address` says where
devices and phones in the same network reach it; that is remembered. The database always stays on
this machine alone. VESTIBULE_HTTP_HOST, _HTTP_PORT, _HTTPS_HOST, _HTTPS_PORT, _PUBLIC_URL and
_ENROL_URL (`server/config.py`) go before both.
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
    parser.add_argument(
        "--address",
        metavar="HOST",
        help="this machine's IPv4 address or name, at which devices and phones reach pages, "
        "enrolment and broker from now on; listens on all its addresses (127.0.0.1: on none but "
        "this machine's own)",
    )
    options = parser.parse_args(argv)
    if options.address and os.environ.get("VESTIBULE_DSN_INGEST"):
        parser.error("--address is for its own services: set VESTIBULE_HTTP_HOST and the like")
    configure()
    if os.environ.get("VESTIBULE_DSN_INGEST"):
        settings = Settings.from_environment()
    else:
        found = deployment(address=options.address)
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
