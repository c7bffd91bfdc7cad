"""The routes of /v1 about opinions: surveys, alerts of dissatisfaction, actions."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
