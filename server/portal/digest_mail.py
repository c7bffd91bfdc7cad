"""The digest in words, and as a message: text and HTML of the same lines. Pure.

No picture, no tracking, no script; the only links are to the page that shows the same, and to the
end of it (RFC 8058: a mail program ends it by one POST to the address in List-Unsubscribe).
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from hmac import compare_digest
from urllib.parse import urlsplit

from markupsafe import Markup

from server.people.sealing import Seal
from server.portal.digest_numbers import Digest, Week
from server.web.catalogue import Catalogue

UNSUBSCRIBE = "/unsubscribe/"
_PURPOSE = "end a digest"
_MAC = 24


@dataclass(frozen=True, slots=True)
class Part:
    """A heading and its lines."""

    title: str
    lines: tuple[str, ...]


def token_for(seal: Seal, user: int, organisation: int) -> str:
    """Return what ends somebody's digests, and nothing else; it never ends itself."""
    data = f"{user}.{organisation}".encode()
    return urlsafe_b64encode(seal.sign(_PURPOSE, data)[:_MAC] + data).decode().rstrip("=")


def read_token(seal: Seal, token: str) -> tuple[int, int] | None:
    """Return whose digests of which organisation a token ends, None if it is not ours."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (Error, ValueError):
        return None
    mac, data = raw[:_MAC], raw[_MAC:]
    if not compare_digest(mac, seal.sign(_PURPOSE, data)[:_MAC]):
        return None
    user, _, organisation = data.decode().partition(".")
    return int(user), int(organisation)


def title_of(digest: Digest, t: Catalogue) -> str:
    number = digest.monday.isocalendar().week
    title = t("dg_subject", organisation=digest.organisation, number=number)
    return f"{title} ({digest.retail})" if digest.retail else title


def parts_of(digest: Digest, t: Catalogue) -> list[Part]:
    """Return a digest in words: the whole, each site, what to doubt, what to do."""
    found = [Part(t("dg_all"), _lines(digest.total, t))]
    if len(digest.sites) > 1:
        found += [Part(site.name, _lines(site, t)) for site in digest.sites]
    doubts = [
        t("dg_blind_always", site=each.site, spot=each.spot)
        if each.since is None
        else t(
            "dg_blind",
            site=each.site,
            spot=each.spot,
            day=t.short_day(each.since.date()),
            time=t.clock(each.since),
        )
        for each in digest.blind
    ]
    doubts += [
        t("dg_part", site=each.name, coverage=t.percent(each.coverage))
        if each.coverage is not None
        else t("dg_unseen", site=each.name)
        for each in digest.sites
        if each.doubted
    ]
    doubts += [t("dg_drift", site=s, drift=t.percent(d, signed=True)) for s, d in digest.drifting]
    found.append(Part(t("dg_doubt"), tuple(doubts) or (t("dg_no_doubt"),)))
    todo = [t("dg_alerts", site=site, n=n) for site, n in digest.alerts]
    todo += [
        t("dg_action", site=each.site, title=each.title, day=t.short_day(each.on))
        for each in digest.actions
    ]
    found.append(Part(t("dg_todo"), tuple(todo) or (t("dg_no_todo"),)))
    return found


def _lines(week: Week, t: Catalogue) -> tuple[str, ...]:
    if week.visits is None:
        found = [t("dg_not_measured")]
    else:
        found = [t("dg_visits", n=t.number(round(week.visits)))]
        if week.before:
            change = t.percent(week.visits / week.before - 1, signed=True)
            found.append(t("dg_before", change=change, n=t.number(round(week.before))))
        if week.year is not None and week.change is not None:
            change = t.percent(week.change, signed=True)
            values = {"change": change, "n": t.number(round(week.year))}
            found.append(t("dg_year", week=week.aligned or "", **values))
    if week.imputed is not None and round(week.imputed) > 0:
        found.append(t("dg_imputed", n=t.number(round(week.imputed))))
    if week.conversion is not None:
        found.append(t("dg_conversion", share=t.percent(week.conversion)))
    if week.index is not None:
        found.append(t("dg_index", index=t.number(round(week.index))))
    if week.coverage is not None:
        found.append(t("dg_coverage", share=t.percent(week.coverage)))
    return tuple(found)


def html_of(parts: list[Part]) -> Markup:
    """Return parts as headings and lists; every text is escaped."""
    found = Markup()
    for part in parts:
        lines = Markup().join(Markup("<li>{}</li>").format(line) for line in part.lines)
        found += Markup("<h2>{}</h2>\n<ul>{}</ul>\n").format(part.title, lines)
    return found


def message_of(
    digest: Digest,
    t: Catalogue,
    *,
    number: int,
    sender: str,
    to: str,
    pages: str,
    token: str,
    now: datetime,
) -> EmailMessage:
    """Return the message; sent again it bears the same Message-ID, by which doubles are known."""
    parts, title = parts_of(digest, t), title_of(digest, t)
    page, end = f"{pages}/digest", f"{pages}{UNSUBSCRIBE}{token}"
    found = EmailMessage()
    found["Subject"] = " ".join(title.split()).replace("=?", "= ?")  # what mail would decode
    found["From"] = sender
    found["To"] = to
    found["Date"] = format_datetime(now)
    found["Message-ID"] = f"<digest-{number}-{digest.monday}@{urlsplit(pages).hostname}>"
    found["List-Unsubscribe"] = f"<{end}>"
    if end.startswith("https://"):  # as RFC 8058 demands; else a person follows the link
        found["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    found["Auto-Submitted"] = "auto-generated"
    found["Content-Language"] = t.language
    text = [title, ""]
    for part in parts:
        text += [part.title, *(f"- {line}" for line in part.lines), ""]
    text += [t("dg_why"), page, "", t("dg_end"), end, ""]
    found.set_content("\n".join(text))
    html = Markup(
        '<!doctype html>\n<html lang="{}"><head><meta charset="utf-8"><title>{}</title></head>\n'
        '<body><h1>{}</h1>\n{}<p>{} <a href="{}">{}</a></p>\n<p><a href="{}">{}</a></p>\n'
        "</body></html>\n"
    ).format(t.language, title, title, html_of(parts), t("dg_why"), page, page, end, t("dg_end"))
    found.add_alternative(str(html), subtype="html")
    return found
