"""`vestibule quarantine list|explain|redrive`: frames that could not be read."""

from ops.deployment import deployment
from server.ingest import quarantine


def main(argv: list[str]) -> int:
    """Run the subcommand on the deployment's database."""
    return quarantine.main(argv, deployment().owner_dsn.reveal())
