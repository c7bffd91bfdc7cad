"""Versions of what runs on devices, in an order that text does not have: 2.9, 2.10. Pure.

A version is one to four numbers, then perhaps `dev`, `a`, `b` or `rc` with a number: it comes
before the same one without. `2.4` and `2.4.0` are the same. `version_key` of the database
(0014_segments.sql) says the same of the name that an agent greets with.
"""

import re

NUMBERS = 4
MOST = 2**31 - 1
_EARLY = {"dev": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "rc": 3}
_FINAL = 4
_VERSION = re.compile(
    rf"v?(\d{{1,9}}(?:\.\d{{1,9}}){{0,{NUMBERS - 1}}})"
    r"(?:[-.]?(dev|alpha|a|beta|b|rc)[-.]?(\d{1,9})?)?(?:\+[0-9A-Za-z.-]*)?",
    re.ASCII,
)

Key = tuple[int, ...]


def key(text: str) -> Key | None:
    """Return what versions are compared by: four numbers, a rank and its number; None if none."""
    found = _VERSION.fullmatch(text.strip().lower())
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    rank = _FINAL if found[2] is None else _EARLY[found[2]]
    return (*numbers, *[0] * (NUMBERS - len(numbers)), rank, int(found[3] or 0))
