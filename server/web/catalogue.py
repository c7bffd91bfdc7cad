"""What pages say, in the reader's language: JSON catalogues, numbers and dates as written there.

A catalogue is flat: key to text, with `{name}` for what is put in. Every language has every key and
the same names in it; `problems` tells where not, and a test asks it. A key that is missing at run
time is an error of ours, never a key shown to a person.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from babel import Locale, dates, numbers

LANGUAGES: Mapping[str, str] = {"sv": "Svenska", "da": "Dansk", "en": "English"}
DEFAULT_LANGUAGE = "en"
SHARED = Path(__file__).parent / "catalogues"
_LOCALES = {"sv": "sv_SE", "da": "da_DK", "en": "en_GB"}
_LONG = {"sv": "EEEE d MMMM", "da": "EEEE 'den' d. MMMM", "en": "EEEE d MMMM"}
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One language's texts and its ways with numbers and dates."""

    language: str
    texts: Mapping[str, str]

    @property
    def locale(self) -> Locale:
        return Locale.parse(_LOCALES[self.language])

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of `key` with `values` put in; KeyError if it has none."""
        return self.texts[key].format_map(values)

    def number(self, value: float) -> str:
        return numbers.format_decimal(value, locale=self.locale)

    def percent(self, share: float, *, signed: bool = False) -> str:
        """Return 0.123 as `12 %`, in the language's way; `signed` writes + too."""
        text = numbers.format_percent(abs(share), format="#,##0 %", locale=self.locale)
        sign = "−" if round(share * 100) < 0 else "+" if signed and round(share * 100) > 0 else ""
        return sign + text

    def day(self, day: date) -> str:
        """Return a weekday and date, such as `onsdag 18 november`."""
        return dates.format_date(day, _LONG[self.language], locale=self.locale)

    def short_day(self, day: date) -> str:
        return dates.format_skeleton("MMMd", day, locale=self.locale)

    def month(self, day: date) -> str:
        """Return a month and its year, such as `november 2026`."""
        return dates.format_skeleton("yMMMM", day, locale=self.locale)

    def weekday(self, day: date) -> str:
        """Return the weekday alone, as it stands within a sentence."""
        return dates.format_date(day, "EEEE", locale=self.locale)

    def clock(self, at: datetime) -> str:
        """Return hours and minutes of a local time, 24 hours a day."""
        return at.strftime("%H:%M")

    def week(self, day: date) -> str:
        """Return the ISO week's number in words."""
        return self("week", number=day.isocalendar().week)


def load(
    folders: Sequence[Path], languages: Iterable[str] = tuple(LANGUAGES)
) -> dict[str, Catalogue]:
    """Return each language's catalogue out of `folders`' `<language>.json` files."""
    found: dict[str, Catalogue] = {}
    for language in languages:
        texts: dict[str, str] = {}
        for folder in folders:
            texts |= json.loads((folder / f"{language}.json").read_text())
        found[language] = Catalogue(language, texts)
    return found


def problems(catalogues: Mapping[str, Catalogue]) -> list[str]:
    """Return what is missing, empty, or has other names in it than English does."""
    english = catalogues[DEFAULT_LANGUAGE].texts
    wrong: list[str] = []
    for language, catalogue in catalogues.items():
        for key in sorted(english.keys() | catalogue.texts.keys()):
            here, there = catalogue.texts.get(key, ""), english.get(key, "")
            if not here.strip() or not there.strip():
                wrong.append(f"{language}: {key} is missing")
            elif set(_NAME.findall(here)) != set(_NAME.findall(there)):
                wrong.append(f"{language}: {key} has other names than English")
    return wrong


def choose(accepted: str, *, wished: str = "") -> str:
    """Return the language to use: the one `wished` for, else the best of an Accept-Language."""
    if wished in LANGUAGES:
        return wished
    ranked: list[tuple[float, int, str]] = []
    for position, part in enumerate(accepted.split(",")[:20]):
        name, _, quality = part.strip().partition(";q=")
        language = name.split("-")[0].lower()
        if language in LANGUAGES:
            try:
                weight = float(quality or 1)
            except ValueError:
                continue
            ranked.append((-weight, position, language))
    return min(ranked)[2] if ranked else DEFAULT_LANGUAGE
