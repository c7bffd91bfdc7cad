"""Take out of a visitor's own words what tells who they or others are, before anything is stored.

What is masked: addresses of e-mail and the web, IBANs and card numbers (Luhn), personal numbers of
Sweden (also coordination numbers) and Denmark, telephone numbers, and the name after "my name is"
in Swedish, Danish, Norwegian and English. The first rules that fit win; each leaves its own word.

A personal number is masked whether its check digit fits or not: Danish ones need not fit since
2007, and a mistyped one still tells its owner. Prices, times, dates and article numbers that look
like none of these stay. It is a net, not a proof: names that nobody introduces are not found, and
the page asks people not to write them.

Each rule takes a time that grows as the text does: runs are tried from their beginning alone, and
given back in no parts.
"""

import re
from collections.abc import Callable

MOST_TEXT = 1_000

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]++\s?(?:@|\(at\)|\[at\]|\(snabel-a\))\s?"
    r"[\w-]+(?:\s?(?:\.|\(dot\)|\[dot\])\s?[\w-]+)+",
    re.I,
)
_URL = re.compile(
    r"\b(?:https?://|www\.)\S+"
    r"|(?<!\w)(?<!\w[.-])\w[\w-]*+(?:\.[\w-]++)*\.(?:se|dk|no|fi|com|net|org|eu|io|nu)"
    r"(?:/\S*)?(?![\w@])",
    re.I,
)
_IBAN = re.compile(  # of ASCII: some letters elsewhere are small or large ones of A to Z, too
    r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b", re.I | re.A
)
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
_SWEDISH = re.compile(  # day + 60 is a coordination number's
    rf"(?<!\d)(?:18|19|20)?\d{{2}}[ -]?{_MONTH}[ -]?(?:{_DAY}|6[1-9]|[78]\d|9[01])"
    r"(?:[ ]?[-+][ ]?|[ ]?)\d{4}(?!\d)"
)
_DANISH = re.compile(rf"(?<!\d){_DAY}[ .-]?{_MONTH}[ .-]?\d{{2}}[ ]?[- ]?[ ]?\d{{4}}(?!\d)")
_PHONE_ABROAD = re.compile(
    r"(?<![\d+])(?:\+|00)[1-9]\d{0,2}[ ./-]?(?:\(0\))?(?:[ ./-]?\d){6,11}(?!\d)"
)
_PHONE_NATIONAL = re.compile(r"(?<![\d.,])\(?0\d{1,3}\)?[ /-]?\d(?:[ -]?\d){4,8}(?![\d,.]\d|\d)")
_PHONE_EIGHT = re.compile(  # Denmark and Norway: eight digits in pairs, or in 3-2-3
    r"(?<![\d.,:-])(?:[2-9]\d (?:\d\d ){2}\d\d|[49]\d\d \d\d \d{3})(?![\d:-]|[.,]\d)"
)
_PHONE_CALLED = re.compile(
    r"\b(tlf|tel|telefon|mobil|mobile|phone|ring|ringa|ring til|call|sms|nummer|nr)"
    r"((?:\s+(?:me|mig|meg|til|på|paa|at|on|is|är|er|my|mit|mitt))*[.: ]*)"
    r"\+?\d(?:[ -]?\d){6,11}(?!\d)",
    re.I,
)
_NAMED = re.compile(
    r"\b((?:jag|jeg) (?:heter|hedder)|(?:mitt namn|mit navn|mitt navn) (?:är|er)"
    r"|my name(?:'s| is)|my names|i am called|hälsningar|med vänlig hälsning|venlig hilsen|mvh)"
    r"([,:]?\s+)"
    r"([^\W\d_][\w'’-]*(?:\s+(?:(?:af|av|von|van|de|der|la)\s+)?[A-ZÅÄÖÆØÉÜ][\w'’-]*){0,3})",
    re.I,
)
_NO_NAMES = frozenset(
    {"inte", "ikke", "not", "och", "og", "and", "men", "but", "är", "er", "is", "var", "som", "who",
     "att", "at", "the", "en", "et", "ett", "a", "i", "på", "alla", "alle"}
)  # fmt: skip


def mask(text: str) -> str:
    """Return `text` without what identifies people, at most `MOST_TEXT` characters long."""
    text = re.sub(r"[^\S\n]+", " ", text.replace("\u00a0", " ")).strip()
    text = "".join(c for c in text if c.isprintable() or c == "\n")
    text = _EMAIL.sub("[e-mail]", text)
    text = _URL.sub("[link]", text)
    text = _IBAN.sub(lambda m: "[account]" if _iban(m[0]) else m[0], text)
    text = _CARD.sub(lambda m: "[card]" if _luhn(_digits(m[0])) else m[0], text)
    text = _PHONE_ABROAD.sub("[phone]", text)
    text = _SWEDISH.sub("[personal number]", text)
    text = _DANISH.sub("[personal number]", text)
    text = _PHONE_CALLED.sub(lambda m: f"{m[1]}{m[2]}[phone]", text)
    text = _PHONE_NATIONAL.sub(_phone, text)
    text = _PHONE_EIGHT.sub("[phone]", text)
    return _NAMED.sub(_named, text)[:MOST_TEXT]


def _named(match: re.Match[str]) -> str:
    words = match[3].split()
    if words[0].lower() in _NO_NAMES:
        return match[0]
    kept: list[str] = []
    for at, word in enumerate(words):  # with re.I the pattern takes small words too: only names go
        if at and word[0].islower() and word not in ("af", "av", "von", "van", "de", "der", "la"):
            kept = words[at:]
            break
    return f"{match[1]}{match[2]}[name]" + (" " + " ".join(kept) if kept else "")


def _phone(match: re.Match[str]) -> str:
    n = len(_digits(match[0]))
    return "[phone]" if 7 <= n <= 11 else match[0]


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


def _luhn(digits: str) -> bool:
    """Whether a number's check digit fits (ISO/IEC 7812-1)."""
    double: Callable[[int], int] = lambda d: d * 2 - 9 if d > 4 else d * 2  # noqa: E731
    values = [int(d) for d in reversed(digits)]
    return sum(double(d) if at % 2 else d for at, d in enumerate(values)) % 10 == 0


def _iban(text: str) -> bool:
    """Whether an account number's check digits fit (ISO 13616), or it has a Nordic one's length."""
    plain = re.sub(r"[ -]", "", text).upper()
    if plain[:2] in ("SE", "DK", "NO", "FI") and len(plain) in (24, 18, 15):
        return True
    turned = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1
