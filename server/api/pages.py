"""Pages of lists: where one goes on, and where the next will.

A list is asked for one row more than a page holds; that it came is how a page knows of a next.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from server.api.parameters import Listing, Spanned, read_cursor, write_cursor
from server.api.types import Page

Row = TypeVar("Row", bound=msgspec.Struct)


def after(asked: Listing | Spanned) -> str:
    """Return the reference that the page before ended with, "" for the first page."""
    return "" if asked.cursor is None else str(read_cursor(asked)[0])


def page_of(asked: Listing, rows: Sequence[Row], ref: Callable[[Row], str]) -> Page[Row]:
    """Return a page of at most `asked.limit` of `rows`, of which there is one more to know that."""
    shown = list(rows[: asked.limit])
    more = len(rows) > len(shown)
    return Page(shown, write_cursor(asked, (ref(shown[-1]), 0)) if more else None)
