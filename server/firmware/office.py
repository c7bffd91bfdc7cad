"""What it takes to answer a device that asks for updates."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg


@dataclass(frozen=True, slots=True)
class Office:
    """What it takes to answer: the database (as ingest), the service's key, time and chance."""

    pool: asyncpg.Pool
    pki: Path
    now: Callable[[], datetime]
    nonce: Callable[[], str] = field(default=lambda: secrets.token_hex(16))
