"""What simulated visitors answer to whatever their kiosk asks. Pure.

The model's visitors (`traffic.touches`) have a mood, one of four faces, and some of them say in a
second touch, from 0 to 10, whether they would recommend the shop. Here both become answers of the
questionnaire that is on the screen: the mood its first question's, the second touch the next
question's that is for who answered so. Who is asked nothing more presses nothing more.
"""

from typing import assert_never

from protocol.questionnaire import Kind, Question, Questionnaire
from simulators.traffic import Touch

FACES, MOST = 4, 10
"""What the model's visitors answer: a face from the best, 0, and then 0 to 10."""


class Asked:
    """Fits one kiosk's touches, in their order, to what it shows."""

    def __init__(self) -> None:
        self._visit: int | None = None
        self._said: dict[int, int] = {}

    def fitted(self, touch: Touch, shown: Questionnaire) -> Touch | None:
        """Return a touch as a press of what is shown; None: it would be none."""
        if touch.question == 0:
            self._visit, self._said = touch.visit, {}
            number, pleased = 0, 1 - touch.answer / (FACES - 1)
        elif touch.visit == self._visit and (follows := self._next(shown)) is not None:
            number, pleased = follows, touch.answer / MOST
        else:
            return None
        answer = answered(shown.questions[number], pleased, dice=touch.visit + touch.answer)
        self._said[number] = answer
        return touch._replace(question=number, answer=answer)

    def _next(self, shown: Questionnaire) -> int | None:
        first = max(self._said, default=-1) + 1
        for number, question in enumerate(shown.questions[first:], first):
            after = question.after
            if after is None or self._said.get(after.question) in after.answers:
                return number
        return None


def answered(question: Question, pleased: float, *, dice: int) -> int:
    """Return the answer of somebody who is so pleased, from 0 to 1; options go by the dice."""
    answers = question.answers
    match question.kind:
        case Kind.SMILEY3 | Kind.SMILEY4 | Kind.SMILEY5:
            return round((1 - pleased) * (len(answers) - 1))
        case Kind.NPS | Kind.CSAT | Kind.CES | Kind.STATEMENT:
            return answers.start + round(pleased * (len(answers) - 1))
        case Kind.CHOICE:
            return answers[dice % len(answers)]
        case _:
            assert_never(question.kind)
