"""A release's bytes: an uncompressed tar that is the same from the same files, whoever builds it.

Names in order, no owner, no time, one mode; and first `release.json`, which says what it is:
{"component": "agent", "version": "1.2.3"}. Of `agent` it holds the packages `agent` and `protocol`,
of `kiosk` the screen's files.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.content import canonical, fields_of
from protocol.release import MAX_LENGTH, Component, component_of, version_of
from server.errors import RefusedError

SAID = "release.json"
PACKAGES = {"agent": ("agent", "protocol"), "kiosk": (".",)}
_MODE = 0o644
_LEFT_OUT = (".pyc", ".so")


@dataclass(frozen=True, slots=True)
class Archive:
    """What a release's file is."""

    component: Component
    version: str
    length: int
    sha256: str
    files: int


def build(source: Path, out: Path, *, component: Component, version: str) -> Archive:
    """Pack a tree into `out`. Raises RefusedError, OSError."""
    version_of(version, "version")
    said = canonical({"component": component, "version": version})
    files = dict(_files(source, PACKAGES[component]))
    if not files:
        raise RefusedError("release_empty", f"{source} holds nothing of a release of {component}")
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
        tar.addfile(_entry(SAID, len(said)), io.BytesIO(said))
        for name in sorted(files):
            content = files[name].read_bytes()
            tar.addfile(_entry(name, len(content)), io.BytesIO(content))
    return inspect(out)


def inspect(path: Path) -> Archive:
    """Return what a file says that it is, and its digest. Raises RefusedError, OSError."""
    length = path.stat().st_size
    if length > MAX_LENGTH:
        raise RefusedError("release_too_large", f"{path} has {length} bytes; at most {MAX_LENGTH}")
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
            if first is None or first.name != SAID or first.size > 1024:
                raise ValueError(f"it does not begin with {SAID}")
            file = tar.extractfile(first)
            said = fields_of(json.loads(file.read() if file else b""), "", ("component", "version"))
            files = len(tar.getmembers()) - 1
    except (tarfile.TarError, ValueError) as error:
        said_so = f"{path} was not made by `vestibule release build`: {error}"
        raise RefusedError("release_malformed", said_so) from error
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    component = component_of(said["component"], "component")
    return Archive(component, version_of(said["version"], "version"), length, digest, files)


def _files(source: Path, packages: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for package in packages:
        top = source / package
        if not top.is_dir():
            wanted = "" if package == "." else f": name the one that holds {' and '.join(packages)}"
            raise RefusedError("release_empty", f"{top} is no folder{wanted}")
        for path in top.rglob("*"):
            inside = path.relative_to(source)
            name = inside.as_posix()
            if path.suffix in _LEFT_OUT or any(map(_is_left_out, inside.parts)):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise RefusedError("release_malformed", f"{path}: a release holds files alone")
            if path.is_file() and name != SAID:
                yield name, path


def _is_left_out(part: str) -> bool:
    return part == "__pycache__" or part.startswith(".")


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, _MODE
    return entry
