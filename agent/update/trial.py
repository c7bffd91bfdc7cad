"""A trial: what new code has to show within its time before it is committed.

- It has worked for a while without trouble of its own;
- its device tested itself, as the doctor does, and a screen that is tried was drawn;
- the server answered a session that it opened itself, with the device's certificate;
- the server acknowledged the trial, asked for over HTTPS.
"""

import asyncio
import http.client
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.clock import Clock
from agent.enrol import EnrolError
from agent.update.states import Failed, Failure, Proof, Proved, Update
from protocol.update import Class

HEALTH_S = 20.0
TEST_S = 15.0  # between self-tests
LOOK_S = 0.5
ASK_S = (1.0, 15.0)


@dataclass(frozen=True, slots=True)
class Around:
    """What an update needs to know, and have done, of the agent around it.

    `idle_ms`: since anybody used the device. `trouble`: what is wrong with this process, by a code;
    empty if nothing is. `self_test` returns the same of the device. `show` puts up a slot's screen
    (None: the package's) of the build that is named, for so many seconds (0: for good); `drawn`
    says whether it was drawn since. Without a screen, `show` is None.
    """

    version: str
    idle_ms: Callable[[], int]
    trouble: Callable[[], str]
    online: Callable[[], bool]
    self_test: Callable[[], Awaitable[str]]
    restart: Callable[[], None]
    show: Callable[[Path | None, str, int], None] | None = None
    drawn: Callable[[], bool] = field(default=lambda: True)


class StoppedError(Exception):
    """What was being done is not wanted any more."""


class Trial:
    """The trial of an update that is under way: `await trial.run()`."""

    def __init__(
        self,
        update: Update,
        around: Around,
        clock: Clock,
        *,
        proofs: Callable[[], frozenset[Proof]],
        still: Callable[[Update], None],
        exchange: Callable[[], Awaitable[object]],
        happen: Callable[[Proved], Awaitable[None]],
    ) -> None:
        """`still` raises StoppedError once the machine is elsewhere."""
        self._update = update
        self._around = around
        self._clock = clock
        self._proofs = proofs
        self._elsewhere = still
        self._exchange = exchange
        self._happen = happen
        self._lacks = ""

    async def run(self) -> Failed | None:
        """Show all of it, and return None; or what was not shown in time. Raises StoppedError."""
        job = self._update.job
        assert job is not None
        try:
            async with asyncio.timeout(job.trial_s), asyncio.TaskGroup() as group:
                group.create_task(self._healthy(min(HEALTH_S, job.trial_s / 4)))
                group.create_task(self._tested())
                group.create_task(self._online())
                group.create_task(self._acknowledged())
        except TimeoutError:
            return Failed(self._unproved())
        except BaseExceptionGroup as group_error:
            _, others = group_error.split(StoppedError)
            if others is not None:
                raise others from None
            raise StoppedError from None
        return None

    def _still(self) -> None:
        self._elsewhere(self._update)

    def _unproved(self) -> Failure:
        lacks = [each for each in Proof if each not in self._proofs()]
        if Proof.SELF_TEST in lacks:
            return Failure(Class.SELF_TEST, code_of(self._lacks or "self_test"))
        return Failure(Class.TIMEOUT, f"trial_{lacks[0].value}" if lacks else "trial_timeout")

    async def _healthy(self, needs_s: float) -> None:
        """Work for a while; each trouble begins it anew."""
        since = self._clock.monotonic_ms()
        while (now := self._clock.monotonic_ms()) - since < needs_s * 1000:
            if self._around.trouble():
                since = now
            await self._clock.sleep(min(1.0, needs_s / 4))
            self._still()
        await self._happen(Proved(Proof.HEALTH))

    async def _tested(self) -> None:
        parts = {each.component for each in self._update.places}
        while True:
            self._lacks = await self._around.self_test() if "agent" in parts else ""
            if not self._lacks and "kiosk" in parts and not self._around.drawn():
                self._lacks = "not_drawn"
            self._still()
            if not self._lacks:
                break
            await self._clock.sleep(LOOK_S if self._lacks == "not_drawn" else TEST_S)
        await self._happen(Proved(Proof.SELF_TEST))

    async def _online(self) -> None:
        while not self._around.online():
            await self._clock.sleep(LOOK_S)
            self._still()
        await self._happen(Proved(Proof.SESSION))

    async def _acknowledged(self) -> None:
        """Ask until the server has acknowledged that this code is on trial."""
        wait_s = ASK_S[0]
        while Proof.SERVER not in self._proofs():
            with suppress(EnrolError, OSError, http.client.HTTPException, ValueError):
                await self._exchange()
            if Proof.SERVER in self._proofs():
                return
            self._still()
            await self._clock.sleep(wait_s)
            self._still()
            wait_s = min(ASK_S[1], wait_s * 1.5)


def code_of(text: str) -> str:
    """Return a text as the wire has codes."""
    kept = "".join(c if (c.isalnum() and c.isascii()) or c in "_.-" else "_" for c in text.lower())
    return (kept if kept[:1].isalpha() else f"x{kept}")[:64]
