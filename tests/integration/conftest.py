"""Fixtures that several integration tests share."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from ops.services.stack import Stack
from tests.ingest_world import Ingesting, ingesting, owning
from tests.integration.api_world import world as world
from tests.integration.api_world import world_database as world_database
from tests.integration.people_world import people as people


@pytest.fixture
async def owner(stack: Stack, database: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection to a migrated database."""
    async with owning(stack, database) as connection:
        yield connection


@pytest.fixture
async def ingest(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> AsyncIterator[Ingesting]:
    """Ingest without a broker, on the same database."""
    async with ingesting(stack, database) as running:
        yield running
