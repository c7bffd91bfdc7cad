"""What simulated visitors answer: always something that the screen has, and in its order."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ops.demo.world import PUBLISHED
from protocol.questionnaire import Kind, Questionnaire, make, read
from simulators.asked import Asked, answered
from simulators.traffic import Touch

VECTORS = Path(__file__).parents[1] / "vectors" / "questionnaires"
SHOWN = [read(path.read_bytes()) for path in sorted(VECTORS.glob("*.json"))]
TEXT = {"en": "How?"}


def asking(*questions: dict[str, object]) -> Questionnaire:
    said = [{"text": TEXT, **each} for each in questions]
    return make({"format": 1, "languages": ["en"], "title": TEXT, "questions": said})


@st.composite
def visits(draw: st.DrawFn) -> list[Touch]:
    """Touches as the model makes them: a face, and of some a second one."""
    found: list[Touch] = []
    for visit in range(1, draw(st.integers(1, 8))):
        found.append(Touch(visit * 1000, visit, 0, draw(st.integers(0, 3))))
        if draw(st.booleans()):
            found.append(Touch(visit * 1000 + 500, visit, 1, draw(st.integers(0, 10))))
    return found


@given(shown=st.sampled_from(SHOWN), touches=visits())
def test_each_press_is_an_answer_to_a_question_that_this_visitor_is_asked(
    shown: Questionnaire, touches: list[Touch]
) -> None:
    asked, said = Asked(), dict[int, dict[int, int]]()
    for touch in touches:
        press = asked.fitted(touch, shown)
        if press is None:
            assert touch.question == 1
            continue
        assert (press.at_ms, press.visit) == (touch.at_ms, touch.visit)
        question = shown.questions[press.question]
        assert press.answer in question.answers
        before = said.setdefault(press.visit, {})
        assert press.question > max(before, default=-1)
        if question.after is not None:
            assert before[question.after.question] in question.after.answers
        before[press.question] = press.answer
    assert set(said) == {touch.visit for touch in touches}  # whoever presses is counted


@given(touches=visits())
def test_four_faces_and_a_recommendation_are_answered_as_the_model_says(
    touches: list[Touch],
) -> None:
    asked = Asked()
    assert [asked.fitted(touch, PUBLISHED) for touch in touches] == touches


def test_who_is_pleased_answers_at_the_good_end_of_every_scale() -> None:
    for kind in Kind:
        if kind is Kind.CHOICE:
            continue
        (question,) = asking({"kind": kind}).questions
        good, bad = (answered(question, pleased, dice=0) for pleased in (1.0, 0.0))
        assert {good, bad} == {min(question.answers), max(question.answers)}
        assert (good < bad) is kind.startswith("smiley")


def test_who_is_asked_one_thing_presses_once_and_a_questionnaire_may_change_meanwhile() -> None:
    one = asking({"kind": "smiley4"})
    asked = Asked()
    assert asked.fitted(Touch(0, 1, 0, 3), one) == Touch(0, 1, 0, 3)
    assert asked.fitted(Touch(1, 1, 1, 0), one) is None
    two = asking({"kind": "choice", "options": [TEXT, TEXT]}, {"kind": "csat"})
    assert asked.fitted(Touch(2, 2, 1, 10), two) is None  # of whom no first answer was seen
    assert asked.fitted(Touch(3, 3, 0, 0), two) == Touch(3, 3, 0, 1)
    assert asked.fitted(Touch(4, 3, 1, 10), two) == Touch(4, 3, 1, 5)
