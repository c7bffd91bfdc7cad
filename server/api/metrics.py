"""The routes of /v1 about KPIs: `metrics:query`, their definitions and targets."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
