"""What the broker is given of the authority's directory, and whether it has it already.

It reads these files only when it starts: 2.0.21 and 2.0.22 must not be told to reload. So what it
is to trust from now on waits for a planned restart, and who switches must know that it was done.
"""

import hashlib
import json
from pathlib import Path

from server.pki.files import write

TRUSTED = ("device-anchor.pem", "service-anchor.pem")
SHOWN = ("broker.pem", "broker.key")
REVOKED = "device.crl"
FILES = (*TRUSTED, *SHOWN, REVOKED)

_NOTE = "installed.json"


def note_installed(pki: Path) -> None:
    """Note that the broker runs with the files as they are now."""
    write(pki / _NOTE, json.dumps(_digests(pki), indent=1).encode())


def waiting(pki: Path) -> list[str]:
    """Return which files have changed since the broker was given them; the list is not one."""
    try:
        installed = json.loads((pki / _NOTE).read_text())
    except (OSError, ValueError):
        installed = {}
    return [name for name, digest in _digests(pki).items() if installed.get(name) != digest]


def _digests(pki: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((pki / name).read_bytes()).hexdigest()
        for name in (*TRUSTED, *SHOWN)
        if (pki / name).exists()
    }
