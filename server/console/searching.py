"""What the console's one search box takes: words, or a filter. Pure.

What has no sign of a filter in it is words, each of which must be in a device's name, serial or
model, or in the name of its place.
"""

import re

from server.console.office import Reach
from server.fleet.filters import FIELDS, Compare, Filter, Op, either, every, parse, value_of
from server.fleet.search import EVERYWHERE, Within

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
