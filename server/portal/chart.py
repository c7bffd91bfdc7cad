"""A site's day as the chart draws it: two lines of quarters, and bands for gaps and closed time."""

from datetime import datetime

from server.portal.numbers import SitePage
from server.portal.view import Cell, cell_of
from server.rollup.answer import CountRow
from server.rollup.quality import Hours
from server.web.catalogue import Catalogue

Chart = dict[str, object]
"""JSON for `page.js`; instants are UTC seconds."""


def chart_of(page: SitePage, words: Catalogue) -> Chart:
    """Return what the chart needs; null where nothing was measured."""
    now = page.site.now
    today = {_minute(row): row for row in page.quarters}
    before = {_minute(row): row for row in page.before}
    minutes = sorted(today)
    return {
        "zone": page.time_zone,
        "from": _instant(page.quarters[0].start) if page.quarters else 0,
        "until": _instant(page.quarters[-1].until) if page.quarters else 0,
        "at": [_instant(today[m].start) for m in minutes],
        "now": [_shown(today[m], now=now) for m in minutes],
        "before": [_shown(before[m], now=now) if m in before else None for m in minutes],
        "bands": _bands([today[m] for m in minutes], now=now),
        "names": {
            "time": words("time"),
            "now": words.short_day(page.site.day),
            "before": words("a_week_before"),
        },
    }


def _shown(row: CountRow, *, now: datetime) -> int | None:
    if cell_of(row, now=now) not in (Cell.MEASURED, Cell.PARTLY) or row.visits is None:
        return None
    return round(row.visits)


def _bands(rows: list[CountRow], *, now: datetime) -> list[tuple[int, int, str]]:
    """Return [from, until, gap | closed], joined where they touch."""
    bands: list[tuple[int, int, str]] = []
    for row in rows:
        cell = cell_of(row, now=now)
        gap = cell is Cell.GAP or (cell is Cell.PARTLY and (row.coverage or 0) < 1)
        kind = "gap" if gap else "closed" if row.hours is Hours.CLOSED else ""
        if not kind:
            continue
        start, until = _instant(row.start), _instant(row.until)
        if bands and bands[-1][1:] == (start, kind):
            start = bands.pop()[0]
        bands.append((start, until, kind))
    return bands


def _minute(row: CountRow) -> tuple[int, int]:
    """The local minute of the day, and which pass of a repeated hour."""
    at = datetime.fromisoformat(row.local)
    return at.hour * 60 + at.minute, row.fold


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
