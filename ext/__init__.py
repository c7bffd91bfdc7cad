"""The decoder in use: compiled where it was built, else the reference; equal bit for bit.

VESTIBULE_NO_EXT=1 forces the reference; VESTIBULE_REQUIRE_EXT=1 makes the compiled one's absence an
ImportError instead of a slow server; both at once contradict each other.
"""

import os
from types import ModuleType

from ext import reference
from ext.layout import (
    BUCKET_MS,
    COUNT_DELTA,
    COUNT_ROW,
    PRESS_DELTA,
    PRESSES_COLUMNS,
    READINGS_COLUMNS,
    RECORD,
    SLOT_MS,
    CountDelta,
    Decoded,
    Place,
    PressDelta,
    Record,
    Status,
)
from ext.reference import place


def _compiled() -> ModuleType | None:
    """Return the compiled module as the environment asks, or None for the reference."""
    refused = os.environ.get("VESTIBULE_NO_EXT") == "1"
    required = os.environ.get("VESTIBULE_REQUIRE_EXT") == "1"
    if refused and required:
        raise ImportError("VESTIBULE_NO_EXT=1 and VESTIBULE_REQUIRE_EXT=1 contradict each other")
    if refused:
        return None
    try:
        from ext import _decoder
    except ImportError as error:
        if required:
            raise ImportError(
                "VESTIBULE_REQUIRE_EXT=1, but the compiled decoder is not there: "
                "run `python setup.py build_ext --inplace` (needs gcc and python3-dev)"
            ) from error
        return None
    return _decoder


COMPILED: bool = _compiled() is not None

if COMPILED:
    from ext._decoder import crc32c, decode, decode_packed, pack_places, scan, sum_counts
else:
    from ext.reference import crc32c, decode, decode_packed, pack_places, scan, sum_counts

__all__ = [
    "BUCKET_MS",
    "COMPILED",
    "COUNT_DELTA",
    "COUNT_ROW",
    "PRESSES_COLUMNS",
    "PRESS_DELTA",
    "READINGS_COLUMNS",
    "RECORD",
    "SLOT_MS",
    "CountDelta",
    "Decoded",
    "Place",
    "PressDelta",
    "Record",
    "Status",
    "crc32c",
    "decode",
    "decode_packed",
    "pack_places",
    "place",
    "reference",
    "scan",
    "sum_counts",
]
