"""`vestibule site` on a real database."""

from pathlib import Path

import pytest

from ops.command import main
from ops.services.stack import Stack
from server.audit.log import verify
from tests.integration.test_people_commands import Store
from tests.integration.test_people_commands import store as store

pytestmark = pytest.mark.services
FILE = (
    "site;time_zone;hours;door;spot;kind\n"
    'Café;Europe/Stockholm;"Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off";Front;Front;counter\n'
)


def test_sites_are_imported_and_exported_to_the_same(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "sites.csv", tmp_path / "out.csv"
    path.write_text(FILE)
    words = ["site", "import", str(path), "--organisation", "own"]
    assert main([*words, "--dry-run"]) == 0
    assert "site added\t\tCafé" in capfd.readouterr().out
    assert store.value("select count(*) from sites") == 2
    assert main(words) == 0
    assert "site added\tsite-" in capfd.readouterr().out
    assert store.value("select count(*) from audit where act = 'site added'") == 1
    assert main(["site", "export", "--organisation", "own", "--to", str(out)]) == 0
    assert main(["site", "import", str(out), "--organisation", "own"]) == 0
    found = capfd.readouterr()
    assert "2 rows, 0 changes" in found.err
    assert main(["site", "list", "--organisation", "own"]) == 0
    assert "Café" in capfd.readouterr().out


def test_a_bad_file_says_where_and_writes_nothing(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sites.csv"
    path.write_text(FILE + ";;;;;\nB;Europe/Nowhere;;;;\n")
    assert main(["site", "import", str(path), "--organisation", "Quite new"]) == 1
    assert f"{path}:4: time_zone: no time zone 'Europe/Nowhere'" in capfd.readouterr().err
    assert store.value("select count(*) from organisations") == 2
    path.write_bytes(FILE.encode("latin-1"))
    assert main(["site", "import", str(path), "--organisation", "own"]) == 1
    assert "line 2 is not UTF-8" in capfd.readouterr().err
    assert main(["site", "export", "--organisation", "none"]) == 1


def test_what_commands_make_is_audited_as_what_the_console_makes(
    store: Store, stack: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIBULE_PKI", str(stack.endpoints.pki))
    new = ["--organisation", "Newly  made", "--time-zone", "Europe/Oslo"]
    assert main(["site", "add", "Shop", *new, "--opens", "10:00", "--closes", "02:00"]) == 0
    assert main(["site", "add", "Shop", *new]) == 1  # as in the console, a name is had once
    assert main(["site", "add", "Mall", "--organisation", "own", "--time-zone", "Mars/Port"]) == 1
    add = ["device", "add", *new, "--site", "Shop", "--spot"]
    assert main([*add, "Front", "--serial", "DC-1", "--model", "DC2"]) == 0
    assert main([*add, "Till", "--kind", "kiosk"]) == 0
    assert main([*add, "Back", "--serial", "DC-1"]) == 1
    capfd.readouterr()
    rows = store.run(lambda c: c.fetch("select actor, act from audit order by id"))
    assert {row["actor"] for row in rows} == {"command"}
    assert [row["act"] for row in rows] == [
        *("organisation added", "site added"),
        *("door added", "spot added", "device added", "device assigned"),
        *("spot added", "device added", "device assigned"),
    ]
    said = "select detail->>'opening' from audit where act = 'site added'"
    assert store.value(said) == "Mo-Su 10:00-02:00"
    assert store.value("select count(*) from organisations where name = 'Newly made'") == 1
    assert store.run(verify) == (len(rows), [])
    device = store.value("select device from devices where kind = 'counter'")
    assert store.value("select model from devices where kind = 'counter'") == "DC2"
    spot = store.value("select ref from spots where kind = 'counter'")
    assert main(["device", "assign", device, spot]) == 0
    last = store.value("select detail from audit order by id desc limit 1")
    assert f'"{spot}"' in last


def test_a_list_of_devices_names_their_models_or_none(
    store: Store, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_PKI", str(stack.endpoints.pki))
    path = tmp_path / "devices.csv"
    columns, place = "organisation,site,time_zone,spot,kind,serial", "own,Shop,Europe/Oslo"
    add = ["device", "add", "--csv", str(path)]
    path.write_text(f"{columns},hardware\n{place},Front,counter,DC-1,DC2\n")
    assert main(add) == 1
    assert store.value("select count(*) from devices") == 0
    path.write_text(f"{columns},model\n{place},Front,counter,DC-1,DC2\n{place},Side,counter,DC-2\n")
    assert main(add) == 0
    path.write_text(f"{columns}\n{place},Back,counter,DC-3\n")
    assert main(add) == 0
    found = store.run(lambda c: c.fetch("select serial, model from devices order by serial"))
    assert [tuple(row) for row in found] == [("DC-1", "DC2"), ("DC-2", ""), ("DC-3", "")]


@pytest.mark.parametrize("what", ["pos", "shifts", "campaigns", "rates"])
def test_a_file_of_others_that_is_missing_is_named(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    path, whose = tmp_path / "none.csv", ["--organisation", "own"]
    assert main(["import", what, str(path), *whose]) == 1
    assert capfd.readouterr().err == f"vestibule import: {path}: No such file or directory\n"
    path.write_bytes("Café".encode("latin-1"))
    assert main(["import", what, str(path), *whose]) == 1
    assert f"vestibule import: {path}: 'utf-8'" in capfd.readouterr().err
