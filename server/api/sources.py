"""The routes of /v1 about what other systems send: sales, rosters, campaigns, rates of exchange."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
