"""`vestibule config` and `vestibule command` on a real database."""

import pytest

from ops.command import main
from tests.integration.test_people_commands import Store
from tests.integration.test_people_commands import store as store

pytestmark = pytest.mark.services
DEVICE = "dc-7k2m9qxw4fpn"


@pytest.fixture
def device(store: Store) -> str:
    store.run(
        lambda c: c.execute(
            "insert into devices (organisation_id, device, kind, state) "
            "select id, $1, 'counter', 'in service' from organisations where ref = 'own'",
            DEVICE,
        )
    )
    return DEVICE


def test_a_setting_is_looked_at_set_and_explained(
    store: Store, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["config", "set", "own", "organisation", "-", "health_s=600", "log_level=debug"]
    assert main([*words, "--dry-run"]) == 0
    assert "1 devices, of which 1 get another value" in capfd.readouterr().out
    assert store.value("select count(*) from settings_layers") == 0
    assert main(words) == 0
    assert main(["config", "set", "own", "device", device, "log_level=info"]) == 0
    assert main(["config", "set", "own", "organisation", "-", "health_s=5"]) == 1
    assert "expected 60 to 1200" in capfd.readouterr().err
    assert main(["config", "set", "own", "organisation", "-", "health_s"]) == 1
    assert main(["config", "set", "own", "site", "site-none", "health_s=60"]) == 1
    capfd.readouterr()
    assert main(["config", "show", device]) == 0
    out = capfd.readouterr().out
    assert "health_s       600                      pending" in out
    assert "from organisation, by command" in out
    assert "without that debug" in out
    assert main(["config", "set", "own", "organisation", "-", "health_s="]) == 0
    assert main(["config", "layers", "own"]) == 0
    assert "organisation (version 2): log_level = debug" in capfd.readouterr().out
    assert main(["config", "show", "dc-nobody"]) == 1
    acts = store.run(lambda c: c.fetch("select act, actor from audit order by id"))
    assert {row["act"] for row in acts} == {"settings changed"}
    assert all(row["actor"].startswith("command ") for row in acts)


def test_a_freeze_keeps_settings_and_restarts_back_unless_it_is_overridden_with_a_reason(
    store: Store, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store.run(
        lambda c: c.execute(
            "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
            "created_at) select id, 'freeze-friday42', 'Black Friday', now() - interval '1 d', "
            "now() + interval '1 d', 'sales', 'user ada', now() from organisations "
            "where ref = 'own'"
        )
    )
    for words in (
        ["config", "set", "own", "device", device, "health_s=600"],
        ["command", "ask", "own", "reboot", "--device", device],
    ):
        assert main(words) == 1
        assert "before the end of 'Black Friday' (freeze-friday42)" in capfd.readouterr().err
        assert main([*words, "--override-freeze"]) == 1
        assert "say why" in capfd.readouterr().err
        assert main([*words, "--override-freeze", "--reason", "it hangs"]) == 0
    assert store.value("select count(*) from audit where act = 'freeze overridden'") == 2


def test_a_command_is_looked_at_asked_for_followed_and_taken_back(
    store: Store, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["command", "ask", "own", "log-tail", "--device", device, "--within", "2h"]
    assert main([*words, "--dry-run"]) == 0
    assert "1 devices, 0 left out" in capfd.readouterr().out
    assert main(words) == 0
    ref = str(store.value("select ref from commands"))
    assert main(["command", "list", "own", "--device", device]) == 0
    assert f"{device}  log-tail: queued" in capfd.readouterr().out
    store.run(
        lambda c: c.execute(
            "insert into command_files select id, organisation_id, $1, now() from commands",
            b"gzip",
        )
    )
    assert main(["command", "file", ref]) == 0
    assert capfd.readouterr().out == "gzip"
    assert main(["command", "cancel", ref]) == 0
    assert main(["command", "show", ref]) == 0
    assert capfd.readouterr().out.count("cancelled") == 2
    assert main(["command", "ask", "own", "identify", "--device", "dc-nobody"]) == 1
    assert main(["command", "show", "cmd-nothing1"]) == 1
