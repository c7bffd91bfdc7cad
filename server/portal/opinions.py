"""The portal's pages on what visitors answered, and what is done about it."""

from server.portal.frame import Portal


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
