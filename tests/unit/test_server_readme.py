"""The server's table of contents names all that is there."""

import re
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server"


def test_the_servers_table_names_each_folder_and_module() -> None:
    table = [line for line in (SERVER / "README.md").read_text().splitlines() if line[:1] == "|"]
    named = [name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    there = {f"{each.parent.name}/" for each in SERVER.glob("*/__init__.py")}
    there |= {each.name for each in SERVER.glob("*.py") if each.name != "__init__.py"}
    assert sorted(named) == sorted(there)
