"""Static files, read once at start: ours, and the pinned packages' as they are.

A file's address holds its digest, so that it may be cached for ever and is never stale.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

OWN = Path(__file__).parent / "static"
PACKAGES = Path(__file__).parents[2] / ".vestibule/assets"
"""Where `python -m ops.assets` puts the packages' files."""

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One served file."""

    body: bytes
    content_type: str
    digest: str


class StaticFiles:
    """The files below some folders by name; a later folder's file hides an earlier one's."""

    def __init__(self, folders: Sequence[Path] = (PACKAGES, OWN)) -> None:
        self._files: dict[str, StaticFile] = {}
        for folder in folders:
            for path in sorted(folder.glob("*")):
                if path.suffix in _TYPES:
                    body = path.read_bytes()
                    digest = hashlib.sha256(body).hexdigest()[:12]
                    self._files[path.name] = StaticFile(body, _TYPES[path.suffix], digest)

    def url(self, name: str) -> str:
        """Return the file's address. FileNotFoundError says how to get what is missing."""
        if name not in self._files:
            raise FileNotFoundError(f"{name} is not there: run `python -m ops.assets`")
        return f"/static/{name}?v={self._files[name].digest}"

    async def serve(self, request: web.Request) -> web.Response:
        """Answer `/static/{name}`."""
        found = self._files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="no such file")
        return web.Response(
            body=found.body,
            content_type=found.content_type,
            charset="utf-8",
            headers={"Cache-Control": _FOREVER},
        )
