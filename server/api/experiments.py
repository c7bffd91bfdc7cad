"""The routes of /v1 about experiments: their designs, draws and results."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
