"""The portal's pages on how visits and sales go from week to week, and one site beside another."""

from server.portal.frame import Portal


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
