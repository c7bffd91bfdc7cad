"""Static files, read once at start: ours, and the pinned packages' as they are.

A file's address holds its digest, so that it may be cached for ever and is never stale. Scripts
name each other without one: asked for so, a file is checked at each use, and sent if it changed.
"""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aiohttp import web

OWN = Path(__file__).parent / "static"
PACKAGES = Path(__file__).parents[2] / ".vestibule/assets"
"""Where `python -m ops.assets` puts the packages' files."""

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOREVER = "public, max-age=31536000, immutable"
_CHECKED = "no-cache"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One served file; `zipped` is it for who takes gzip, as every browser does."""

    body: bytes
    zipped: bytes
    content_type: str
    digest: str


class StaticFiles:
    """The files below some folders by name; a later folder's file hides an earlier one's."""

    def __init__(self, folders: Sequence[Path] = (PACKAGES, OWN)) -> None:
        self._files: dict[str, StaticFile] = {}
        for folder in folders:
            self.add(folder)

    def add(self, folder: Path) -> list[str]:
        """Serve a folder's files, too; return their names."""
        names: list[str] = []
        for path in sorted(folder.glob("*")):
            if path.suffix in _TYPES:
                body = path.read_bytes()
                digest = hashlib.sha256(body).hexdigest()[:12]
                kind = _TYPES[path.suffix]
                self._files[path.name] = StaticFile(body, _zipped(body), kind, digest)
                names.append(path.name)
        return names

    def url(self, name: str) -> str:
        """Return the file's address. FileNotFoundError says how to get what is missing."""
        if name not in self._files:
            raise FileNotFoundError(f"{name} is not there: run `python -m ops.assets`")
        return f"/static/{name}?v={self._files[name].digest}"

    def body(self, name: str) -> bytes:
        """Return the file as it is, before gzip; KeyError if it is not there."""
        return self._files[name].body

    async def serve(self, request: web.Request) -> web.Response:
        """Answer `/static/{name}`."""
        found = self._files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="no such file")
        named = request.query.get("v") == found.digest
        headers = {
            "Cache-Control": _FOREVER if named else _CHECKED,
            "ETag": f'"{found.digest}"',
            "Vary": "Accept-Encoding",
        }
        if any(tag.value == found.digest for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        body = found.body
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = found.zipped, "gzip"
        return web.Response(
            body=body, content_type=found.content_type, charset="utf-8", headers=headers
        )


@cache
def _zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)
