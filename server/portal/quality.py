"""The portal's pages on what is missing, late or estimated."""

from server.portal.frame import Portal


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
