"""The routes of /v1 about what others follow: the feed of changes and webhooks."""

from server.api.acts import ActRoute
from server.api.reads import Route

ROUTES: tuple[Route, ...] = ()
ACTS: tuple[ActRoute, ...] = ()
