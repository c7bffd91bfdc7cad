"""No secret stands in a repr, and so in no traceback."""

from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.enrol import Labelled, Token
from ops.chaos.served import Api
from ops.demo.build import Made
from ops.demo.state import State
from ops.deployment import Deployment
from ops.proof import Sources, Spot
from ops.replay import Place
from ops.services.endpoints import Endpoints
from protocol.label import Label
from server.config import Secret, Settings
from server.people.entrance import Browser, CodeWanted, Entered
from server.people.sessions import Visitor
from server.provisioning.enrol import Shown
from server.provisioning.web import EnrolRequest
from simulators.command import Claim

HIDDEN = "hush-hush"
SETTINGS = Settings(
    Secret(HIDDEN), Secret(HIDDEN), Secret(HIDDEN), Path(), session_secret=Secret(HIDDEN)
)
SPOT = Spot(ref="spot-1", label="Lund", kind="counter", zone="UTC", key=HIDDEN)


@pytest.mark.parametrize(
    "holder",
    [
        Secret(HIDDEN),
        SETTINGS,
        Deployment(Secret(HIDDEN), SETTINGS),
        Endpoints("h", 1, "h", 2, 3, Path(), passwords={"api": HIDDEN}),
        SPOT,
        Sources([], dsn=HIDDEN, api="http://h", spots={"device": SPOT}),
        Claim(HIDDEN),
        Place("Lund", "site-1", HIDDEN),
        Api("http://h", (HIDDEN,)),
        State(0, 0, {}, keys={"Lund": HIDDEN}),
        Made({}, {"Lund": HIDDEN}, {}, {}),
        EnrolRequest(claim=HIDDEN, csr=""),
        EnrolRequest(serial="DC-1", secret=HIDDEN, voucher=HIDDEN, csr=""),
        Token("h", 443, bytes(32), HIDDEN),
        Labelled("h", 443, bytes(32), "DC-1", HIDDEN, HIDDEN),
        AgentConfig(setup_secret=HIDDEN),
        Label("DC-1", HIDDEN),
        Shown("DC-1", HIDDEN, HIDDEN),
        Visitor(1, "user-1", "Ada", "en", (), 1, None, csrf=HIDDEN),
        Browser("h", "b", mark=HIDDEN, nonce=HIDDEN),
        Entered("user-1", "en", "link", token=HIDDEN, mark=HIDDEN),
        CodeWanted(HIDDEN),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_what_holds_a_secret_does_not_show_it(holder: object) -> None:
    assert HIDDEN not in f"{holder!r} {holder}"


def test_a_secret_is_given_only_to_who_asks_for_it() -> None:
    secret = Secret(HIDDEN)
    assert not isinstance(secret, str)
    assert secret.reveal() == HIDDEN
    assert f"{secret} {secret!r} {[secret]}" == "Secret(…) Secret(…) [Secret(…)]"
