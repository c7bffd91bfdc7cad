"""A test's database as the deployment that commands act on: named by the environment."""

from pathlib import Path

import pytest

from ops.services.stack import Stack


def deployed(patched: pytest.MonkeyPatch, stack: Stack, database: str, *, pki: Path) -> None:
    """Let `vestibule` act on this database, and on the authority of `pki`."""
    for name in ("owner", "ingest", "api", "desk", "maint"):
        patched.setenv(f"VESTIBULE_DSN_{name.upper()}", stack.endpoints.dsn(name, database))
    patched.setenv("VESTIBULE_PKI", str(pki))
    patched.setenv("VESTIBULE_SESSION_SECRET", "s" * 32)
