"""The tour's operator card: three faults by rank, with cause and remedy; one incident for a mall.

It is the demo as `make demo` runs it, with its four weeks of history, and nothing hurries what
looks at counts: what the card says that one should see is seen, as late as it says.
"""

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from ops.demo.world import DEAD, UNNOTICED, UNPLUGGED, PlannedSite, places, the_world
from tests.browser.conftest import Demo, demo_of
from tests.browser.test_signin import fine
from tests.browser.test_tech import picture
from tests.browser.test_tour_retailer import opened

pytestmark = [
    pytest.mark.browser,
    pytest.mark.services,
    pytest.mark.timeout(1500),
    pytest.mark.long,
]
IN_A_MINUTE = 150_000  # on a machine that runs other tests besides
IN_THREE_MINUTES = 240_000  # what is gone counts after two minutes
IN_TEN_MINUTES = 600_000  # counts are looked at every five
FAULTS = {
    UNPLUGGED: (
        "The device is gone.",
        "It lost power or its network",
        "Check power and network cable",
    ),
    UNNOTICED: (
        "The counter takes in for out.",
        "It was mounted or remounted the other way round",
        "Enter a calibration that reverses it",
    ),
    DEAD: (
        "The counter counts nobody, and people are there.",
        "Its sensor is dead, covered or unplugged",
        "Look for what hangs before it, check its cable",
    ),
}


@pytest.fixture(scope="module")
def four_weeks(chrome: Browser) -> Iterator[Demo]:
    """The demo as `make demo` runs it."""
    with demo_of() as found:
        yield found


def opens_yet(site: PlannedSite) -> bool:
    """Return whether any of a site's opening time is left of its local day."""
    now = time.time_ns() // 1_000_000
    minutes = (now + n * 60_000 for n in range(24 * 60))
    today = site.local(now).date()
    return any(site.is_open(at) for at in minutes if site.local(at).date() == today)


def ranked() -> list[str]:
    """Return the faults' sites in the order in which they are to stand now.

    Nobody is counted at a kiosk: what is lost at the doors costs more visits, of the busier one
    most, while their shops open yet today. Later nothing costs any, and the worst stands first,
    then what has been so for longest.
    """
    shops = {place.site.name: place.site for place in places(the_world())}
    doors = [UNNOTICED, DEAD]
    return [*doors, UNPLUGGED] if opens_yet(shops[DEAD]) else [UNPLUGGED, *doors]


def test_three_faults_stand_ranked_with_cause_and_remedy_and_a_mall_is_one_incident(
    four_weeks: Demo, new_page: Callable[..., Page]
) -> None:
    tour = new_page()
    tour.goto(four_weeks.address)
    now = opened(tour, "#go-operator")
    found = now.locator("[data-row]")
    expect(found.filter(has_text=UNPLUGGED)).to_have_count(1, timeout=IN_THREE_MINUTES)
    for site, words in FAULTS.items():
        row = found.filter(has_text=site)
        expect(row).to_have_count(1, timeout=IN_TEN_MINUTES)
        for said in words:
            expect(row).to_contain_text(said)
    expect(found).to_have_count(len(FAULTS))  # nothing but what is really wrong
    expect(now.locator("[data-rows]")).to_contain_text(
        re.compile(".*".join(map(re.escape, ranked())), re.DOTALL),
        timeout=IN_A_MINUTE,  # what it costs is weighed once a minute
    )
    fine(now)
    picture(now, "tour-operator")
    narrow = now.context.new_page()
    narrow.set_viewport_size({"width": 360, "height": 900})
    narrow.goto(now.url)
    fine(narrow)
    picture(narrow, "tour-operator-360")
    narrow.close()
    now.close()
    mall = opened(tour, "#go-mall")
    expect(mall.locator("[data-live]")).to_contain_text("Live")
    tour.locator("#mall-button").click()
    expect(tour.locator("#mall-button")).to_have_text("Mend it")
    gone = "All or most devices of the site went at once."
    rows = mall.locator("[data-row]", has_text=gone)
    expect(rows).to_have_count(1, timeout=IN_A_MINUTE)  # without a reload
    expect(rows).to_contain_text("Kvarnporten")
    expect(mall.locator(".figure.offline dd")).to_have_text("9")
    expect(mall.locator("[data-row]")).to_have_count(1)  # not nine
    picture(mall, "tour-operator-mall")
    rows.get_by_role("link").first.click()
    expect(mall.locator("h1")).to_have_text(gone)
    fine(mall)
    mall.get_by_role("button", name="I take it").click()
    expect(mall.locator("#live")).to_contain_text(re.compile("Operator.* has it"))
    tour.locator("#mall-button").click()
    expect(tour.locator("#mall-button")).to_have_text("Cut the mall's link")
