"""Fixtures that several integration tests share."""

from tests.integration.api_world import world as world
