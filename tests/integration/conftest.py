"""Fixtures that several integration tests share."""

from tests.integration.api_world import world as world
from tests.integration.api_world import world_database as world_database
from tests.integration.people_world import people as people
