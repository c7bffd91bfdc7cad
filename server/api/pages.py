"""Pages of lists: where one goes on, and where the next will.

A list is asked for one row more than a page holds; that it came is how a page knows of a next.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar

import msgspec

from server.api.parameters import Listing, Spanned, read_cursor, write_cursor
from server.api.types import Page

Row = TypeVar("Row", bound=msgspec.Struct)


def after(asked: Listing | Spanned) -> str:
    """Return the reference that the page before ended with, "" for the first page."""
    return "" if asked.cursor is None else str(read_cursor(asked)[0])


class Following(TypedDict):
    """What follows a page, the latest first: before which reference, and one more than it holds."""

    before: str | None
    limit: int


def following(asked: Listing) -> Following:
    """Return which rows a list is asked for, its latest first."""
    return {"before": after(asked) or None, "limit": asked.limit + 1}


def page_of(asked: Listing, rows: Sequence[Row], ref: Callable[[Row], str]) -> Page[Row]:
    """Return a page of at most `asked.limit` of `rows`, of which there is one more to know that."""
    shown = list(rows[: asked.limit])
    more = len(rows) > len(shown)
    return Page(shown, write_cursor(asked, (ref(shown[-1]), 0)) if more else None)


def numbered(asked: Spanned, rows: Sequence[Row], number: Callable[[Row], int]) -> Page[Row]:
    """Return a page as `page_of` does, of rows that have a number and no reference."""
    shown = list(rows[: asked.limit])
    more = len(rows) > len(shown)
    return Page(shown, write_cursor(asked, ("", number(shown[-1]))) if more else None)
