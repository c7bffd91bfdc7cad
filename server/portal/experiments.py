"""The portal's pages on trials in some sites against others."""

from server.portal.frame import Portal


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
