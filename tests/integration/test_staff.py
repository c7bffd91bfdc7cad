"""The page that a code at a device leads to: no login, one spot, no numbers, not too often."""

import re
from datetime import timedelta

import pytest

from server.config import Secret
from server.people.sealing import Seal
from server.web.spot_codes import token
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services
SEAL = Seal(Secret("s" * 32))
PAGE = f"/w/{token(SEAL, 'spot-door2345')}"


@pytest.fixture
async def spot(people: People) -> int:
    """A counter that has lost its connection; the device's row."""
    own, owner = people.organisations["own"], people.owner
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select $1, id, 'spot-door2345', 'Entré', 'counter' from sites where ref = 'own-site' "
        "returning id",
        own,
    )
    row: int = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, serial, state) "
        "values ($1, 'dc-staff2345678', 'counter', 'SERIAL-7788', 'in service') returning id",
        own,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(own, row, spot),
    )
    await state(people, row, "offline")
    return row


async def state(people: People, row: int, wanted: str) -> None:
    await people.owner.execute(
        "update presences set state = $2, session = 'open', session_at = $3 where device_id = $1",
        *(row, wanted, NOW),
    )


async def look(people: People, path: str = PAGE, **headers: str) -> tuple[int, str]:
    async with people.browser().get(path, headers=headers, allow_redirects=False) as response:
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "script-src" not in response.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in response.headers
        return response.status, await response.text()


async def test_whoever_stands_there_is_told_what_to_do_without_a_login(
    people: People, spot: int
) -> None:
    status, html = await look(people)
    assert (status, "It needs a hand." in html) == (200, True)
    assert "push its network cable" in html.lower()
    for hidden in ("dc-staff2345678", "SERIAL-7788", "<script"):
        assert hidden not in html
    assert not re.search(r"\d", re.sub(r"<[^>]*>|\?v=\w+", "", html.split("<body>")[1]))
    assert "Den behöver en hand." in (await look(people, f"{PAGE}?l=sv"))[1]
    assert "brug for en hånd" in (await look(people, **{"Accept-Language": "da"}))[1]
    await state(people, spot, "healthy")
    assert "It is working." in (await look(people))[1]
    await people.owner.execute(
        "insert into episodes (organisation_id, subject, subject_id, condition, spot_id, since, "
        "opened_at) select $1, 'spot', id, 'blocked_view', id, $2, $2 from spots",
        *(people.organisations["own"], NOW),
    )
    assert "posters, plants" in (await look(people))[1]
    await people.owner.execute(
        "insert into health_windows (organisation_id, ref, kind, reason, author, starts_at, "
        "ends_at, device_id) values ($1, 'window-a', 'visit', 'x', 'x', $2, $3, $4)",
        *(people.organisations["own"], NOW, NOW + timedelta(hours=1), spot),
    )
    assert "It is being seen to." in (await look(people))[1]
    await people.owner.execute(
        "insert into platform_unknown (since, cause) values ($1, 'behind')", NOW
    )
    assert "Nobody can tell just now." in (await look(people))[1]


async def test_a_code_that_is_none_of_ours_leads_nowhere_and_guessing_is_slow(
    people: People, spot: int
) -> None:
    forged = PAGE[:-1] + ("a" if PAGE[-1] != "a" else "b")
    other = token(Seal(Secret("t" * 32)), "spot-door2345")
    gone = token(SEAL, "spot-gone2345")
    for path in (forged, f"/w/{other}", "/w/x", f"/w/{gone}"):
        assert (await look(people, path))[0] == 404, path
    answers = [(await look(people, forged))[0] for _ in range(12)]
    assert answers[-1] == 429
    assert (await look(people))[0] == 429  # for who guesses, for a while
    people.clock.advance(700)
    assert (await look(people))[0] == 200


async def test_one_address_does_not_look_all_the_time(people: People, spot: int) -> None:
    answers = [(await look(people))[0] for _ in range(64)]
    assert answers[:60] == [200] * 60
    assert 429 in answers[60:]
    people.clock.advance(120)
    assert (await look(people))[0] == 200
