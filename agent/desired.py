"""What this device is to be and to do: asked for over HTTPS, put into force, done, and told.

Decided here:
- One question says how we are and hears what to be (`protocol.state`). It is repeated until there
  is nothing new to say: so the server hears within the same turn what became of its word.
- What may cut us off is tried first: the link goes there, and the server has to answer our hello
  through it within the time that it gave; else the link goes back (`agent.settings`).
- The files are written on the loop: an fsync of some ms delays nobody here, and all that is put
  into force belongs to the loop.
- Commands are begun one after the other, each once (`agent.orders`), and none during a trial. The
  server hears that one is begun before it is done, and may take it back at that moment; where it
  does not answer, it is done all the same.
"""

import asyncio
import http.client
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from agent.content import Asking, Terms
from agent.enrol import EnrolError
from agent.link import Link, LinkError
from agent.orders import Act, Orders
from agent.settings import Settings, Trial
from protocol.content import ContentError
from protocol.settings import address_of
from protocol.state import MAX_REPORT, Answer, Order, Report, read_answer, write_report

ROUNDS = 6  # of one turn; what is not settled by then waits for the next
BACK_SPREAD = 30  # times the spread of a record: every device asks, not kiosks alone
AGAIN_S = 5.0  # between attempts of a trial
LOOK_S = 0.2  # while a trial waits for the server's answer

log = structlog.get_logger(__name__)


class Desired(Asking):
    """Keeps a device as it is to be: `await desired.run()` until cancelled."""

    what = "state"

    def __init__(
        self,
        terms: Terms,
        *,
        link: Link,
        settings: Settings,
        orders: Orders,
        act: Act,
        agent: str,
        boot: Callable[[], str],
    ) -> None:
        super().__init__(terms)
        self._link = link
        self.settings = settings
        self.orders = orders
        self._act = act
        self._agent = agent
        self._boot = boot

    def connected(self) -> None:
        """The broker has taken us: ask in a while; of what waits longer the server rings."""
        self._soon(self._spread_s * BACK_SPREAD)

    async def send_file(self, order: Order, content: bytes) -> None:
        """Send what a command brings. Raises EnrolError, OSError, HTTPException."""
        await self._asked("POST", f"/v1/commands/{order.command}/file", body=content)

    async def _fetch(self) -> bool:
        changed = False
        for _ in range(ROUNDS):
            said = self._report()
            answer = await self._exchange(said)
            self.orders.heard(answer.heard)
            trial = self.settings.take(answer)
            if trial is not None:
                await self._try(trial, answer.confirm_s)
            asked_ms = self._clock.monotonic_ms()
            for order in self.orders.fresh(answer.commands):
                if self._clock.monotonic_ms() - asked_ms < order.ttl_s * 1000:
                    await self._carry_out(order)
            now = self._report()
            if not now.commands and now == replace(said, commands=()):
                return changed
            changed = True
        self.ring()
        return True

    def _report(self) -> Report:
        kept = self.settings.kept
        return Report(
            self._agent,
            self._boot(),
            kept.version,
            tuple(self.settings.in_force),
            self.settings.in_force,
            kept.refused,
            self.orders.unheard(),
        )

    async def _exchange(self, report: Report) -> Answer:
        got = await self._asked("POST", "/v1/state", body=_within(report))
        return read_answer(got.text.encode())

    # -- what may cut us off -----------------------------------------------------------------

    async def _try(self, trial: Trial, confirm_s: int) -> None:
        """Go where a trial leads; come back unless the server was reached there in time."""
        before = self._link.address
        address = address_of(trial.key, str(trial.value or ""))
        log.warning("trying", setting=trial.key, value=trial.value, within_s=confirm_s)
        try:
            async with asyncio.timeout(confirm_s):
                await self._reach(address)
            self.settings.confirm()
        except (TimeoutError, OSError) as error:
            log.error("reverted", setting=trial.key, error=str(error) or type(error).__name__)
            if self._link.address != before:
                self._link.go_to(before)
            self.settings.revert()
        else:
            log.info("confirmed", setting=trial.key)

    async def _reach(self, address: tuple[str, int] | None) -> None:
        """Return once the server has answered our hello through this address."""
        while True:
            with suppress(LinkError):
                await self._link.try_address(address)
                break
            await self._clock.sleep(AGAIN_S)  # meanwhile the link is where it was
        while not self._link.session.answered:  # noqa: ASYNC110 - the session has no event loop
            await asyncio.sleep(LOOK_S)

    # -- what is to be done ------------------------------------------------------------------

    async def _carry_out(self, order: Order) -> None:
        self.orders.begin(order)
        withdrawn: tuple[str, ...] = ()
        with suppress(EnrolError, OSError, http.client.HTTPException, ContentError):
            withdrawn = (await self._exchange(self._report())).withdrawn
        if order.command in withdrawn:
            self.orders.withdraw(order)
            return
        await self.orders.carry_out(order, self._act)


def _within(report: Report) -> str:
    """Return a report as it is sent, with as many outcomes as there is room for."""
    while len(text := write_report(report)) > MAX_REPORT and report.commands:
        report = replace(report, commands=report.commands[:-1])
    return text
