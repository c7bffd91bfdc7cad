"""Every table as SQLAlchemy Core metadata, for statements that are put together in code.

The migrations are what makes them; a test holds both equal, column by column. Roles, policies,
checks and exclusion constraints stand in the migrations alone, and so do hypertables' settings.
"""

from server.db.tables import (
    accuracy,
    checks,
    database,
    desired,
    experiments,
    feeds,
    firmware,
    health,
    identity,
    incidents,
    opinions,
    people,
    questionnaires,
    readings,
    register,
    rollups,
    segments,
    sources,
    surveys,
    targets,
)
from server.db.tables.columns import metadata

__all__ = [
    "accuracy",
    "checks",
    "database",
    "desired",
    "experiments",
    "feeds",
    "firmware",
    "health",
    "identity",
    "incidents",
    "metadata",
    "opinions",
    "people",
    "questionnaires",
    "readings",
    "register",
    "rollups",
    "segments",
    "sources",
    "surveys",
    "targets",
]
