"""`vestibule serve`: run the server in this process until it is told to stop.

Without VESTIBULE_* settings it brings up the embedded services and migrates them first.
"""

import argparse
import asyncio
import os
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
        runner.run(run(settings))
    return 0
