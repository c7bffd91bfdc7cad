"""What the console's one search box takes: words, or a filter; and what is selected by it.

What has no sign of a filter in it is words, each of which must be in a device's name, serial or
model, or in the name of its place.
"""

import re
from datetime import datetime

import asyncpg

from server.console.office import Here, Reach
from server.fleet import search, segments
from server.fleet.filters import FIELDS, Compare, Filter, Op, either, every, parse, value_of
from server.fleet.search import EVERYWHERE, Selection, Within
from server.people.roles import Permission

IN = ("device", "serial", "model", "site", "site.name", "spot.name")
_SIGN = re.compile(r'[=<>~()"]|(?i:\bnot\s+in\b|\bin\s*\()')


def wished(text: str) -> Filter:
    """Return the filter that a text asks for. Raises FilterError."""
    if _SIGN.search(text):
        return parse(text)
    words = text.split()[:10]
    if not words:
        return every(())
    return every([either([_has(field, word) for field in IN]) for word in words])


def _has(field: str, word: str) -> Filter:
    return Compare(field, Op.HAS, value_of(FIELDS[field], word))


def within(reach: Reach) -> Within:
    """Return a reader's places as the search takes them."""
    return EVERYWHERE if reach.all else Within(reach.regions, reach.sites)


async def selected(
    connection: asyncpg.Connection,
    at: Here,
    permission: Permission,
    wanted: Filter,
    *,
    segment: str,
    now: datetime,
) -> Selection:
    """Return the devices that a filter finds, in a segment if one is named, where one may do so.

    Raises NotFoundError.
    """
    places = within(at.reach(permission))
    if not segment:
        return search.selection(wanted, organisation=at.id, now=now, within=places)
    known = await segments.find(connection, at.id, segment)
    return segments.members(known, organisation=at.id, now=now, besides=wanted, within=places)
