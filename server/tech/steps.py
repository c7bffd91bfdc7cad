"""The steps in which a device comes alive, as the screen shows them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from server.provisioning.progress import Mark, Step, StepStatus
from server.tech.refusals import TABLE
from server.web.catalogue import Catalogue

USUAL: dict[Step, timedelta] = {
    Step.CLAIMED: timedelta(),
    Step.ASKED: timedelta(seconds=60),
    Step.CERTIFIED: timedelta(seconds=75),
    Step.CONNECTED: timedelta(seconds=90),
    Step.CLOCK: timedelta(minutes=7),
    Step.STORED: timedelta(minutes=7),
    Step.COUNTED: timedelta(minutes=8),
}
"""By when a step has usually come true, counted from the claim: a device asks every 15 s, and sends
its first frame at the next five minutes."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A step on the screen. `late`: it takes longer than usual, `hint` says what to look at."""

    step: str
    mark: str
    name: str
    hint: str
    current: bool
    late: bool


def shown(
    steps: Sequence[StepStatus], *, waited: timedelta, kind: str, words: Catalogue
) -> list[Shown]:
    """Return the steps; only the first that is not done says what it waits for."""
    first = next((one.step for one in steps if one.mark is not Mark.DONE), None)
    found: list[Shown] = []
    for one in steps:
        current = one.step is first
        failed = one.mark is Mark.FAILED
        late = failed or (current and waited > USUAL[one.step])
        hint = ""
        if late and one.hint:
            hint = _hint(one.hint, kind=kind, words=words)
        elif current:
            hint = words("usually", time=_in_words(USUAL[one.step], words))
        found.append(
            Shown(
                one.step.value,
                one.mark.value,
                words(_for(kind, f"step.{one.step}", words)),
                hint,
                current,
                late,
            )
        )
    return found


def _hint(key: str, *, kind: str, words: Catalogue) -> str:
    """Return a refusal's sentence, or what to look at."""
    if key in TABLE:
        row = TABLE[key]
        return {"sv": row.sv, "da": row.da, "en": row.en}[words.language]
    return words(_for(kind, key, words))


def _for(kind: str, key: str, words: Catalogue) -> str:
    """Return the key for a kind of device, if there is one."""
    return f"{key}.{kind}" if f"{key}.{kind}" in words.texts else key


def _in_words(span: timedelta, words: Catalogue) -> str:
    seconds = round(span.total_seconds())
    if seconds < 120:
        return words("n_seconds", n=seconds)
    return words("n_minutes", n=round(seconds / 60))
