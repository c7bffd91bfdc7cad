"""A password that a command asks for: from a file that the environment names, or the terminal."""

import getpass
import os
import sys
from pathlib import Path

from server.errors import RefusedError


def password(what: str, *, variable: str, new: bool = False) -> bytes:
    """Return `what`, asked for twice if it is `new`. Raises RefusedError."""
    if path := os.environ.get(variable):
        return Path(path).read_bytes().rstrip(b"\r\n")
    if not sys.stdin.isatty():
        raise RefusedError("password_missing", f"name a file with {what} in {variable}")
    given = getpass.getpass(f"{what}: ")
    if new and getpass.getpass("once more: ") != given:
        raise RefusedError("password_differs", "the two were not the same")
    return given.encode()
