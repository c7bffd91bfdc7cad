"""A survey's answers summed up as they are shown: one-time and posters apart, groups kept private.

A group by what a visitor is (a declared choice, the language) shows from 5 answers on, and so does
any group of employees or of a journey audit; where one stays hidden, what would tell it by
subtraction does, too. Of theirs a part, of some sites or one round, is shown only if each of its
sites and rounds would be beside all others, and is cut no further. Numbers over several languages
are marked: nobody has shown yet that the wordings measure the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.feedback.answering import Answered, Cell
from server.feedback.battery import Battery, ItemKind, Population
from server.feedback.indices import Index, wilson
from server.feedback.scores import (
    LEAST_GROUP,
    Reliability,
    Seconds,
    factor_scores,
    kept,
    overall_score,
    reliability,
    seconds_taken,
)

ONE_TIME, POSTER = "one-time", "poster"
BY = ("site", "spot", "channel", "delay", "locale", "touchpoint", "round")


@dataclass(frozen=True, slots=True)
class Score:
    """A factor's score in a group; `factor` None: the overall score. `hidden`: too few answered."""

    way: str
    channels: tuple[str, ...]
    group: str
    factor: str | None
    index: Index | None
    reliability: Reliability | None
    hidden: bool


@dataclass(frozen=True, slots=True)
class Share:
    """How many chose an option, and its share of all who chose, with Wilson's 95 % interval."""

    option: int
    chosen: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a group chose of a choice's options, each of them; none where nobody chose."""

    way: str
    group: str
    item: str
    n: int
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All scores and choices, how long answering took, and how many answered in which language.

    Of a group whose scores are hidden there are no choices either.
    """

    scores: tuple[Score, ...]
    choices: tuple[Choice, ...]
    seconds: Seconds | None
    locales: dict[str, int]
    n: int

    @property
    def pooled_locales(self) -> bool:
        """Whether several languages stand in one number."""
        return len(self.locales) > 1


def withheld(
    population: Population,
    answers: Sequence[Answered],
    cells: Mapping[Cell, int],
    *,
    by: str = "",
) -> bool:
    """Return whether these, of a survey with so many answers by `cells`, tell of too few people.

    They do if the whole, less what is shown of it, would be a group that is too small.
    """
    mine = {(each.site, each.round or "") for each in answers}
    if population is Population.VISITORS or mine == set(cells):
        return False
    shown = kept({"/".join(cell): n for cell, n in cells.items()})
    return by not in ("", "site", "round") or not all("/".join(cell) in shown for cell in mine)


def summed(
    battery: Battery,
    population: Population,
    answers: Sequence[Answered],
    *,
    by: str = "",
    hide: bool = False,
) -> Results:
    """Return the results by one of `BY` or a choice's key; KeyError for another.

    `hide`: they are `withheld`, and only counted.
    """
    choice = battery.by_key[by] if by and by not in BY else None
    if choice is not None and choice.kind is not ItemKind.CHOICE:
        raise KeyError(by)
    language = battery.languages[0]
    names = [] if choice is None else [option[language] for option in choice.options]
    private = choice is not None or by == "locale" or population is not Population.VISITORS
    scores: list[Score] = []
    choices: list[Choice] = []
    for way in (ONE_TIME, POSTER):
        groups: dict[str, list[Answered]] = {}
        for each in answers:
            if each.channel.one_time is (way == ONE_TIME):
                group = _group(each, by, names)
                if group is not None:
                    groups.setdefault(group, []).append(each)
        shown = kept({group: len(rows) for group, rows in groups.items()})
        for group in sorted(groups):
            hidden = hide or (private and group not in shown)
            scores += _scores(battery, way, group, groups[group], hidden=hidden)
            if not hidden:
                choices += _choices(battery, way, group, groups[group])
    taken = [each.seconds for each in answers if each.seconds is not None]
    locales = dict(Counter(each.locale for each in answers))
    return Results(tuple(scores), tuple(choices), seconds_taken(taken), locales, len(answers))


def shares(chosen: Sequence[int]) -> tuple[Share, ...]:
    """Return the shares of options that were chosen so often; none where nobody chose."""
    n = sum(chosen)
    if not n:
        return ()
    return tuple(
        Share(option, count, count / n, *wilson(count, n)) for option, count in enumerate(chosen)
    )


def _choices(battery: Battery, way: str, group: str, rows: Sequence[Answered]) -> list[Choice]:
    found: list[Choice] = []
    for item in battery.of(ItemKind.CHOICE):
        chosen = [0] * len(item.options)
        for row in rows:
            if item.key in row.answers:
                chosen[row.answers[item.key]] += 1
        found.append(Choice(way, group, item.key, sum(chosen), shares(chosen)))
    return found


def words_of(population: Population, answers: Sequence[Answered]) -> list[Answered]:
    """Return the answers that hold words, the latest first; none of a group that is too small."""
    if population is not Population.VISITORS:
        counts = Counter(each.site for each in answers)
        shown = kept(counts)
        answers = [each for each in answers if each.site in shown]
    return [each for each in answers if each.words]


def _group(answer: Answered, by: str, options: Sequence[str]) -> str | None:
    """Return which group an answer belongs to, of a choice's `options`; None: it was not said."""
    match by:
        case "":
            return ""
        case "site":
            return answer.site
        case "spot":
            return answer.spot
        case "channel":
            return answer.channel.value
        case "delay":
            return answer.delay.value
        case "locale":
            return answer.locale
        case "touchpoint":
            return answer.touchpoint
        case "round":
            return answer.round or ""
        case _:
            given = answer.answers.get(by)
            if given is None:
                return None
            return options[given]


def _scores(
    battery: Battery, way: str, group: str, rows: Sequence[Answered], *, hidden: bool
) -> list[Score]:
    channels = tuple(sorted({row.channel.value for row in rows}))
    if hidden:
        return [Score(way, channels, group, None, None, None, True)]
    given = [row.answers for row in rows]
    found = [Score(way, channels, group, None, overall_score(battery, given), None, False)]
    for factor, index in factor_scores(battery, given).items():
        sure = reliability(battery, factor, given) if len(rows) >= LEAST_GROUP else None
        found.append(Score(way, channels, group, factor, index, sure, False))
    return found
