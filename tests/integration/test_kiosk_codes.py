"""Survey codes on their way to a kiosk, over real mTLS: handed out, shown once, answered."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.codes import Codes
from protocol.codes import Envelope, read_stock
from protocol.content import Fault
from server.errors import ConflictError, RefusedError
from server.feedback import answering, offers, surveys, tokens
from server.feedback import codes as codes_of_server
from server.feedback.battery import Population
from server.feedback.offers import FEW, MOST_A_DAY, SHOWN_FOR, STOCK, Enough, Held
from server.feedback.plans import ContentSigner
from server.feedback.questionnaires import CHANGED
from server.fleet.checks import FieldError
from tests.integration.survey_world import battery
from tests.integration.test_kiosk_plan import ADDRESS, BY, KEY, Shop, other_root, stranger
from tests.integration.test_kiosk_plan import shop as shop

pytestmark = pytest.mark.services
SITE, SPOT = "site-kiosks", "spot-kiosk"


def codes_of(shop: Shop, **more: Any) -> Codes:
    return Codes(shop.terms(**more))


async def published(
    shop: Shop, population: Population = Population.VISITORS, name: str = "A"
) -> str:
    made = await surveys.make(
        shop.owner, shop.organisation, name=name, population=population, battery=battery(name), **BY
    )
    await surveys.move(shop.owner, shop.organisation, made.ref, to="published", **BY)
    return made.ref


async def offered(shop: Shop, survey: str, spot: str | None = None) -> str:
    found = await offers.make(
        shop.owner, shop.organisation, survey=survey, site=SITE, spot=spot, **BY
    )
    return found.ref


async def stock(shop: Shop, held: Held, now: datetime) -> Any:
    async with shop.pool.acquire() as connection, connection.transaction():
        return await offers.stock_of(
            connection, shop.row, held, key=KEY, address=ADDRESS, random=random.randbytes, now=now
        )


async def test_a_kiosk_shows_each_code_once_and_its_answer_names_survey_site_and_spot(
    shop: Shop,
) -> None:
    survey = await published(shop)
    codes = codes_of(shop)
    await codes.step()
    assert (codes.trouble, codes.ready, codes.take()) == ("", False, None)  # nothing is offered
    await offered(shop, survey)
    await codes.step()
    assert (codes.trouble, codes.left) == ("", STOCK)
    first = codes.take()
    assert first is not None
    assert first.url.startswith(f"{ADDRESS}/")
    again = codes_of(shop, server=None)  # another start, and nobody answers ever after
    second = again.take()
    assert second is not None
    assert (again.left, second.url != first.url) == (STOCK - 2, True)
    now = datetime.now(UTC).replace(microsecond=0)
    for shown in (first.url.rsplit("/", 1)[1], second.typed):
        async with shop.owner.transaction():
            found = await answering.opened(shop.owner, KEY, tokens.read(KEY, shown), now=now)
        bound = found.binding
        assert (bound.survey, bound.site, bound.spot, bound.channel) == (
            *(survey, SITE, SPOT), tokens.Channel.TERMINAL,
        )  # fmt: skip
    read, kept = tokens.read(KEY, first.typed), tokens.kept_of(first.url.rsplit("/", 1)[1])
    sheet = tokens.sheet(KEY, kept, now=now, random=bytes(10))
    async with shop.owner.transaction():
        await answering.answer(
            shop.owner, KEY, read, sheet=sheet, form={"overall": "8"}, locale="en", now=now
        )
    with pytest.raises(RefusedError, match="counts once"):
        await answering.opened(shop.owner, KEY, read, now=now)
    found_survey = await surveys.find(shop.owner, shop.organisation, survey)
    (answer,) = await answering.answered(shop.owner, found_survey)
    assert (answer.site, answer.spot, answer.channel) == (SITE, SPOT, tokens.Channel.TERMINAL)


async def test_a_stock_is_replaced_when_few_are_left_or_half_its_time_is_over_and_not_before(
    shop: Shop,
) -> None:
    now = datetime.now(UTC)
    ref = await offered(shop, await published(shop))
    made = await stock(shop, Held(), now)
    held = Held(ref, STOCK, made.until_ms)
    for good, at in ((held, now), (replace(held, left=FEW), now), (held, now + SHOWN_FOR * 0.49)):
        with pytest.raises(Enough):
            await stock(shop, good, at)
    for bad, at in ((replace(held, left=FEW - 1), now), (held, now + SHOWN_FOR * 0.51),
                    (replace(held, offer="offer-x"), now), (Held(), now)):  # fmt: skip
        assert (await stock(shop, bad, at)).offer == ref
    rows = await shop.owner.fetch(
        "select distinct channel, expires_at - made_at as life, used_at from survey_tokens"
    )
    assert [row["channel"] for row in rows] == ["terminal"]
    assert min(row["life"] for row in rows) > SHOWN_FOR + timedelta(days=1)


async def test_a_spot_is_handed_so_many_a_day_and_no_more(shop: Shop) -> None:
    now = datetime.now(UTC)
    ref = await offered(shop, await published(shop))
    for _ in range(MOST_A_DAY // STOCK):
        await stock(shop, Held(), now)
    assert await stock(shop, Held(), now) is None
    with pytest.raises(Enough):
        await stock(shop, Held(ref, 1, 0), now)
    assert await stock(shop, Held(), now + timedelta(days=1, seconds=1)) is not None


async def test_what_ends_is_shown_no_more_and_the_spots_own_comes_before_the_sites(
    shop: Shop,
) -> None:
    first, second = await published(shop, name="A"), await published(shop, name="B")
    rung: list[str] = []
    async with shop.pool.acquire() as listening:
        await listening.add_listener(CHANGED, lambda *said: rung.append(said[3]))
        before = await offered(shop, first, SPOT)
        await offers.end(shop.owner, shop.organisation, before, **BY)
        await listening.fetchval("select 1")
        assert rung == [shop.device] * 2  # the kiosk hears of both at once
        await listening.reset()
    everywhere = await offered(shop, first)
    here = await offered(shop, second, SPOT)
    now = datetime.now(UTC)
    assert (await stock(shop, Held(), now)).offer == here
    await offers.end(shop.owner, shop.organisation, here, **BY)
    codes = codes_of(shop)
    await codes.step()
    assert codes.ready
    taken = (shop.state / "codes.json").read_bytes()
    assert everywhere.encode() in taken
    await codes.step()  # good still
    assert (shop.state / "codes.json").read_bytes() == taken
    await surveys.move(shop.owner, shop.organisation, first, to="closed", **BY)
    found = await offers.find(shop.owner, shop.organisation, everywhere)
    assert found.ended_at is not None
    await codes.step()
    assert (codes.ready, (shop.state / "codes.json").exists()) == (False, False)


async def test_what_may_not_be_offered_is_refused(shop: Shop) -> None:
    employees = await published(shop, Population.EMPLOYEES)
    with pytest.raises(ConflictError, match="visitors"):
        await offered(shop, employees)
    survey = await published(shop)
    with pytest.raises(FieldError, match="no spot"):
        await offered(shop, survey, "spot-x")
    await offered(shop, survey)
    with pytest.raises(ConflictError, match="already"):
        await offered(shop, survey)
    await surveys.move(shop.owner, shop.organisation, survey, to="closed", **BY)
    with pytest.raises(ConflictError, match="closed"):
        await offered(shop, survey, SPOT)


async def test_a_stock_that_nobody_may_hand_out_is_refused_and_the_last_good_one_stays(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await offered(shop, await published(shop))
    codes = codes_of(shop)
    await codes.step()
    kept = (shop.state / "codes.json").read_bytes()
    monkeypatch.setattr(codes_of_server, "stock_of", anew(shop))
    signers = [stranger(shop, "svc-ingest"), other_root(tmp_path)]
    for number, signer in enumerate(signers, 1):
        with monkeypatch.context() as patched:
            patched.setattr(codes_of_server, "ContentSigner", Loaded(signer))
            await codes.step()
        assert (codes.refused, codes.trouble.startswith(Fault.UNTRUSTED)) == (number, True)
    with monkeypatch.context() as patched:
        patched.setattr(codes_of_server, "Envelope", misled)
        await codes.step()
    assert (codes.refused, codes.trouble.startswith(Fault.UNTRUSTED)) == (3, True)
    with monkeypatch.context() as patched:
        patched.setattr(codes_of_server, "stock_of", anew(shop, device="fk-another"))
        await codes.step()
    assert codes.trouble.startswith(Fault.WRONG_DEVICE)
    assert (shop.state / "codes.json").read_bytes() == kept
    assert codes_of(shop, server=None).ready
    await codes.step()
    assert (codes.trouble, codes.refused) == ("", 4)


def anew(shop: Shop, **other: Any) -> Any:
    async def made(connection: Any, device: int, held: Held, **how: Any) -> Any:
        found = await offers.stock_of(connection, device, Held(), **how)
        assert found is not None
        return replace(found, **other)

    return made


class Loaded:
    """Takes the place of the class that loads the content service's key."""

    def __init__(self, signer: ContentSigner) -> None:
        self.load = lambda _: signer


def misled(stock: bytes, signature: bytes, chain: str) -> Envelope:
    """A stock that leads elsewhere, under the signature of the good one."""
    return Envelope(stock.replace(b"shop.example", b"shop.evil.ex"), signature, chain)


async def test_a_device_that_is_thrown_out_or_stands_nowhere_gets_no_codes(shop: Shop) -> None:
    await offered(shop, await published(shop))
    await shop.owner.execute("update devices set state = 'suspended' where id = $1", shop.row)
    codes = codes_of(shop)
    await codes.step()
    assert codes.trouble != ""
    await shop.owner.execute("update devices set state = 'in service' where id = $1", shop.row)
    await shop.owner.execute("delete from assignments where device_id = $1", shop.row)
    await codes.step()
    assert (codes.trouble, codes.ready) == ("", False)
    assert await shop.owner.fetchval("select count(*) from survey_tokens") == 0


async def test_the_picture_is_a_qr_code_of_the_address(shop: Shop) -> None:
    import segno

    await offered(shop, await published(shop))
    made = await stock(shop, Held(), datetime.now(UTC))
    assert read_stock(made.content(), device=shop.device) == made
    codes = codes_of(shop)
    await codes.step()
    found = codes.take()
    assert found is not None
    drawn = segno.make(found.url, error="m", micro=False, boost_error=False).matrix
    assert found.rows == ["".join(str(int(dark)) for dark in row) for row in drawn]
