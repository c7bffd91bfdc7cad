"""The portal's pages on how far the counters can be trusted."""

from server.portal.frame import Portal


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
