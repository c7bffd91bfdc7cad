"""The routes of /v1 about how far counters can be trusted: recounts and what follows from them."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
