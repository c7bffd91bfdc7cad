"""The kiosk of the tour's store manager: whoever follows the card may press it, too.

All the rest is the real agent: what is pressed is journalled, sent, filtered and served like what
the simulated visitors press, and stands in the simulators' book like theirs.
"""

from itertools import count

from simulators.device import SimDevice
from simulators.traffic import Touch

SAD = 3
"""The fourth face, the unhappiest."""
CROWD_MS = tuple(9_000 * n + 800 * (n * n % 5) for n in range(12))
"""When each of a dozen unhappy visitors presses: none so soon that it counts as pressed again."""
VISITORS = 1 << 20
"""Where the visits of who follows the tour begin: far beyond those of the simulated visitors."""


class OpenKiosk(SimDevice):
    """A kiosk that visitors press, and whoever asks for it."""

    def press(self, answer: int, *, after_ms: int = 0) -> None:
        """Let one more visitor press an answer to the first question, now or so much later."""
        self._asked.append((self._clock.utc_ms() + after_ms, answer))
        self._asked.sort()

    def step(self) -> None:
        super().step()  # whatever came before
        now_ms = self._clock.utc_ms()
        due = [answer for at_ms, answer in self._asked if at_ms <= now_ms]
        if self._paused or not due:
            return
        del self._asked[: len(due)]
        touches = [Touch(now_ms, next(self._visits), 0, answer) for answer in due]
        events, following = self._events, self._next
        self._events, self._next = iter(touches[1:]), touches[0]
        super().step()
        self._events, self._next = events, following

    def _listen_from(self, now_ms: int) -> None:
        super()._listen_from(now_ms)
        self._asked: list[tuple[int, int]] = []
        self._visits = count(VISITORS)
