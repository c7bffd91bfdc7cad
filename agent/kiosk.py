"""What belongs to one visitor at the kiosk, and what is asked where nobody published anything.

Presses without 30 s of silence between them are one visit, unless whoever feeds them, as the page
does, says by a token which visit it is.
"""

from protocol.questionnaire import Questionnaire, make

IDLE_MS = 30_000
MOST_TOKENS = 16  # of visits whose presses may come late

BUILT_IN: Questionnaire = make(
    {
        "format": 1,
        "languages": ["sv", "da", "en"],
        "title": {"sv": "Ditt besök", "da": "Dit besøg", "en": "Your visit"},
        "questions": [
            {
                "kind": "smiley4",
                "text": {
                    "sv": "Hur var ditt besök?",
                    "da": "Hvordan var dit besøg?",
                    "en": "How was your visit?",
                },
            }
        ],
    }
)
"""Its presses bear the hash of the settings, zeros unless set: that is how the server knows it."""


class Visits:
    """Number visits from 1 since the agent's start."""

    def __init__(self, *, idle_ms: int = IDLE_MS) -> None:
        self._idle_ms = idle_ms
        self._ordinal = 0
        self._last_ms: int | None = None
        self._tokens: dict[str, int] = {}

    def ordinal(self, now_ms: int) -> int:
        """Return the visit that a press at `now_ms` (monotonic) belongs to."""
        if self._last_ms is None or now_ms - self._last_ms >= self._idle_ms:
            self._ordinal += 1
        self._last_ms = now_ms
        return self._ordinal

    def named(self, token: str) -> int:
        """Return the visit of this token; a new token is a new visit."""
        if token not in self._tokens:
            self._ordinal += 1
            self._last_ms = None
            self._tokens[token] = self._ordinal
            if len(self._tokens) > MOST_TOKENS:
                del self._tokens[next(iter(self._tokens))]
        return self._tokens[token]

    def reset(self) -> None:
        """End the visit: the screen went back to its first question."""
        self._last_ms = None
