"""`vestibule migrate`: bring the database to this release's schema."""

import argparse
import asyncio

from ops.deployment import deployment
from server.db.migrate import SCHEMA_VERSION, migrate


def main(argv: list[str]) -> int:
    """Migrate the deployment's database."""
    argparse.ArgumentParser(prog="vestibule migrate", description=__doc__).parse_args(argv)
    asyncio.run(migrate(deployment(database_alone=True).owner_dsn.reveal()))
    print(f"the database is at schema {SCHEMA_VERSION}")
    return 0
