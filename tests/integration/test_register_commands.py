"""`vestibule site` on a real database."""

from pathlib import Path

import pytest

from ops.command import main
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
