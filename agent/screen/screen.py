"""What the page asks of the agent: what to show, and that a press be kept.

Decided here:
- The page says what it shows with each press: the questionnaire's hash, the question, and the visit
  by a token of its own. A press under a hash that is not ours to show, or for a question or answer
  that its questionnaire has not, is refused (409) and counted as such (`screen.refused`).
- A press is answered once it is journalled, and the page sends it again until it is answered. Its
  number rises in the page's own source, as a feeder's ids do: so none is lost and none counted
  twice, whichever of the two is killed when.
- The page hears of what changes by asking `/state` with the number it knows, which is answered when
  there is another, or after a while. So a page is known to be open, and a button on the case means
  the answer in its place on that page's screen; without a page nothing is on the screen, and such a
  button is refused.
- After the last question the page may offer to go on on the visitor's own phone. Who touches that
  is shown a code (`agent.codes`), which is then used up: most visitors walk on, and the next in the
  queue waits for nobody's picture. The page is told with no press, and tells none.
- The page's files are the package's, or those of an update's slot. `/state` names which (`build`),
  and a page of another loads anew between two visits; it says which it has drawn. One on trial is
  told to load anew by itself once the trial is over: one that does not work would not hear of it.
- A PIN opens the staff's menu. Five wrong ones close it for half a minute, then for ever longer.
"""

import asyncio
import hmac
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

import structlog

from agent.clock import Clock
from agent.codes import Codes
from agent.kiosk import Visits
from agent.plan import OnScreen, Plans
from agent.recorder import Feed, RefusedError
from agent.screen.http import HttpError, Request, Response, answer, serve
from agent.sensor import Take, Touch
from agent.starts import version

HOLD_S = 20.0  # how long `/state` waits for something new
IDENTIFY_MS = 30_000  # for how long the page is framed
LOOK_S = 1.0  # for a questionnaire whose hours begin or end
OPEN_MS = 30_000  # a page that has not asked for so long is gone
BUTTON_MS = 2_000  # what a page has not heard by then, nobody means any more
MOST_BUTTONS = 8
FREE_TRIES, FIRST_WAIT_MS, MOST_WAIT_MS = 5, 30_000, 3_600_000
RETRY_S = 15.0
REFRESH_S = 30  # after a trial's end
TOUCH, BUTTON = 1, 2  # a press's source
_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/faces.js": ("faces.js", "text/javascript"),
    "/message.js": ("message.js", "text/javascript"),
    "/words.json": ("words.json", "application/json"),
}
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
PACKAGE = "package"
_CLIENT = re.compile("[0-9a-f]{16}")
_TOKEN = re.compile("[0-9a-z-]{1,40}")

log = structlog.get_logger(__name__)


class Screen:
    """The page's server: `await screen.run()` until cancelled."""

    def __init__(
        self,
        plans: Plans,
        codes: Codes | None = None,
        *,
        port: int,
        pin: str,
        clock: Clock,
        visits: Visits,
        take: Take,
        flush: Callable[[], bool],
        last_id: Callable[[str], int],
        status: Callable[[], dict[str, object]],
    ) -> None:
        self._plans = plans
        self._codes = codes
        self._port = port
        self._pin = pin
        self._clock = clock
        self._visits = visits
        self._take = take
        self._flush = flush
        self._last_id = last_id
        self._status = status
        self._own: dict[str, tuple[str, bytes | Path]] = {
            path: (kind, (_FOLDER / name).read_bytes()) for path, (name, kind) in _FILES.items()
        }
        self._files = self._own
        self._build, self._trial_s = PACKAGE, 0
        self._loaded = self._drawn = ""  # the builds whose page was fetched, and drawn, last
        self._shown: tuple[OnScreen, bool] | None = None
        self._number = 0
        self._buttons: list[tuple[int, int, int]] = []  # number, position, when
        self._pressed = 0
        self._changed = asyncio.Event()
        self._asked_ms: int | None = None
        self._framed_ms = 0
        self._seen: dict[str, int] = {}
        self._tries = 0
        self._locked_ms = 0
        self.presses = 0
        self.refused = 0
        self.address = ""

    async def run(self) -> None:
        """Serve until cancelled; a port that is taken is tried again."""

        def ready(port: int) -> None:
            self.address = f"http://127.0.0.1:{port}/"
            log.info("page served", address=self.address)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="screen watch")
            while True:
                try:
                    await serve(self._serve, port=self._port, ready=ready)
                except OSError as error:
                    log.error("page not served", port=self._port, error=str(error))
                await self._clock.sleep(RETRY_S)

    async def _watch(self) -> None:
        """Notice when another questionnaire is in force, or codes come or end."""
        while True:
            self._look()
            await self._clock.sleep(LOOK_S)

    def _look(self) -> OnScreen:
        found = (self._plans.on_screen(), self._codes is not None and self._codes.ready)
        if found != self._shown:
            self._shown = found
            self._number += 1
            self._tell()
        return found[0]

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def open(self) -> bool:
        """True if a page is showing."""
        now_ms = self._clock.monotonic_ms()
        return self._asked_ms is not None and now_ms - self._asked_ms < OPEN_MS

    def button(self, position: int) -> None:
        """Hand a button on the case to the page; RefusedError if none is open."""
        if not self.open:
            self.refused += 1
            raise RefusedError("nothing is on the screen")
        self._pressed += 1
        self._buttons.append((self._pressed, position, self._clock.monotonic_ms()))
        del self._buttons[:-MOST_BUTTONS]
        self._tell()

    def show(self, folder: Path | None, build: str, trial_s: int) -> None:
        """Serve a slot's files from now on, None: the package's; for `trial_s`, 0: for good."""
        self._trial_s = trial_s
        if build == self._build:
            return
        self._build, self._files = build, self._own if folder is None else _within(folder)
        self._loaded = self._drawn = ""
        self._number += 1
        self._tell()
        log.info("screen changed", build=build[:16], files=len(self._files))

    @property
    def drawn(self) -> bool:
        """True once a page was fetched of what is served now, and has drawn it."""
        return self._loaded == self._drawn == self._build

    def identify(self) -> bool:
        """Frame the page for a while, for who looks for this device; False if none is open."""
        if not self.open:
            return False
        self._framed_ms = self._clock.monotonic_ms() + IDENTIFY_MS
        self._number += 1
        self._tell()
        return True

    def status(self) -> dict[str, object]:
        """Return what `vestibule-agent status` shows of it."""
        shown = self._look()
        return {
            "page": self.address,
            "page_open": self.open,
            "questionnaire": shown.hash.hex(),
            "plan_trouble": self._plans.trouble,
            **({} if self._codes is None else {"codes_left": self._codes.left}),
        }

    def metrics(self) -> dict[str, float]:
        """Return the page's health, by name."""
        return {
            "screen.open": float(self.open),
            "screen.buttons": float(self._pressed),
            "screen.presses": float(self.presses),
            "screen.refused": float(self.refused),
        }

    # -- requests ----------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Response:
        if request.method == "GET" and request.path in self._files:
            return await self._file(request.path)
        if request.method == "GET" and request.path == "/state":
            return await self._state(request)
        acts = {"/press": self._press, "/code": self._code, "/staff": self._staff}
        if request.method == "POST" and request.path in acts:
            return acts[request.path](_object(request.body))
        if request.method == "GET" and request.path == "/favicon.ico":
            return Response(204, "image/x-icon", b"")
        raise HttpError(404, "there is nothing here")

    async def _file(self, path: str) -> Response:
        kind, content = self._files[path]
        build = self._build
        try:
            if isinstance(content, Path):
                content = await asyncio.to_thread(content.read_bytes)
        except OSError as error:
            raise HttpError(404, "it can't be read") from error
        if path == "/":
            self._loaded = build
        refresh_s = self._trial_s + REFRESH_S if self._trial_s and path == "/" else 0
        return Response(200, kind, content, refresh_s)

    async def _state(self, request: Request) -> Response:
        """Answer when there is something that the page does not know, or after a while."""
        asked = parse_qs(request.query)
        try:
            number, heard = (int(asked.get(name, ["0"])[0]) for name in ("number", "button"))
        except ValueError as error:
            raise HttpError(400, "numbers are whole") from error
        self._asked_ms = self._clock.monotonic_ms()
        if drawn := asked.get("drawn", [""])[0]:
            self._drawn = drawn
        shown = self._look()
        if number == self._number and heard == self._pressed:
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    await changed.wait()
            shown = self._look()
            self._asked_ms = self._clock.monotonic_ms()
        fresh_ms = self._clock.monotonic_ms() - BUTTON_MS
        return answer(
            {
                "number": self._number,
                "build": self._build,
                "hash": shown.hash.hex(),
                "questionnaire": json.loads(shown.questionnaire.content),
                "site": self._plans.site,
                "staff": bool(self._pin),
                "more": self._codes is not None and self._codes.ready,
                "button": self._pressed,
                "pressed": [p for n, p, at in self._buttons if n > heard and at >= fresh_ms],
                "identify": max(0, self._framed_ms - self._clock.monotonic_ms()),
            }
        )

    def _press(self, said: dict[str, object]) -> Response:
        """Journal a press; 409 if it is none of ours, 503 if the disk refuses just now."""
        client, token = str(said.get("client")), str(said.get("visit"))
        number = _whole(said, "id", 1, (1 << 53) - 1)
        if not _CLIENT.fullmatch(client) or not _TOKEN.fullmatch(token):
            raise HttpError(400, "expected client and visit")
        feed = Feed(f"screen:{client}", number)
        stored = self._last_id(feed.source)
        if number <= stored:
            return answer({"stored": stored})
        if number > self._seen.get(feed.source, 0):
            touch = self._touch(said, feed, token)
            if touch is None:
                self.refused += 1
                log.error("press refused", hash=str(said.get("hash"))[:16])
                return answer({"error": "not on the screen"}, status=409)
            try:
                self._take(touch)
            except RefusedError as error:
                self.refused += 1
                log.error("press refused", error=str(error))
                return answer({"error": str(error)}, status=409)
            self._seen[feed.source] = number
            self.presses += 1
        if not self._flush() or self._last_id(feed.source) < number:
            return answer({"error": "not on disk yet"}, status=503)
        return answer({"stored": number})

    def _touch(self, said: dict[str, object], feed: Feed, token: str) -> Touch | None:
        """Return the press, if what it names can have been on the screen."""
        try:
            shown = bytes.fromhex(str(said.get("hash")))
        except ValueError:
            return None
        questionnaire = self._plans.known(shown)
        question, given = _whole(said, "question", 0, 255), _whole(said, "answer", 0, 255)
        if questionnaire is None or question >= len(questionnaire.questions):
            return None
        if given not in questionnaire.questions[question].answers:
            return None
        source = BUTTON if said.get("by") == "button" else TOUCH
        visit = self._visits.named(f"{feed.source} {token}")
        return Touch(question, given, visit, source, feed, shown)

    def _code(self, said: dict[str, object]) -> Response:
        """Use up a code and answer it; 409 if there is none to show."""
        del said
        found = None if self._codes is None else self._codes.take()
        if found is None:
            return answer({"error": "no code"}, status=409)
        return answer(
            {"url": found.url, "typed": found.typed, "address": found.address, "rows": found.rows}
        )

    def _staff(self, said: dict[str, object]) -> Response:
        """Answer the staff's menu to who knows the PIN."""
        now_ms = self._clock.monotonic_ms()
        if not self._pin:
            raise HttpError(404, "there is nothing here")
        if now_ms < self._locked_ms:
            wait_s = -(-(self._locked_ms - now_ms) // 1000)
            return answer({"error": "wait", "wait_s": wait_s}, status=429)
        if not hmac.compare_digest(str(said.get("pin")).encode(), self._pin.encode()):
            self._tries += 1
            over = self._tries - FREE_TRIES
            if over >= 0:
                self._locked_ms = now_ms + min(MOST_WAIT_MS, FIRST_WAIT_MS << min(over, 10))
            log.warning("wrong PIN at the screen", tries=self._tries)
            return answer({"error": "wrong pin"}, status=403)
        self._tries = 0
        status = self._status()
        return answer(
            {
                "device": status["device"],
                "online": status["connected"],
                "waiting": status["frames_waiting"],
                "clock": status["clock"],
                "disk": not status["trouble"],
                "questionnaire": self._look().hash.hex(),
                "plan": not self._plans.trouble,
                "version": version(),
                "refused": self.refused,
            }
        )


def _within(folder: Path) -> dict[str, tuple[str, bytes | Path]]:
    """Return what a slot serves, by path: the kinds of files that a page is made of."""
    found: dict[str, tuple[str, bytes | Path]] = {
        f"/{path.relative_to(folder).as_posix()}": (_TYPES[path.suffix], path)
        for path in folder.rglob("*")
        if path.suffix in _TYPES and path.is_file()
    }
    return {"/" if path == "/page.html" else path: file for path, file in found.items()}


def _object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "expected JSON") from error
    if not isinstance(value, dict):
        raise HttpError(400, "expected an object")
    return value


def _whole(said: dict[str, object], name: str, low: int, high: int) -> int:
    value = said.get(name)
    if type(value) is not int or not low <= value <= high:
        raise HttpError(400, f"{name} is a whole number from {low} to {high}")
    return value
