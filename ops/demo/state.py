"""What the demo remembers between runs, all below one directory.

state.json      when it began, its devices, keys and references
truth-*         what was generated: history by worker, and live
devices/<id>/   a device's own disk: outbox, identity
services/       the private PostgreSQL and broker
demo.pid        the demo that runs now
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ops.demo.world import Place, the_world
from ops.demo.world import places as places_of
from protocol.identity import DeviceId, device_id
from server.fleet.register import new_device_id

PID_FILE = "demo.pid"
DAY_MS = 86_400_000
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class State:
    """See the module. `since_ms` to `until_ms` is the history; both are whole minutes of UTC."""

    since_ms: int
    until_ms: int
    devices: dict[str, str]  # a place's key to its device
    recorded: bool = False  # the history is in the outboxes
    built: bool = False  # the world is in the database, the devices have certificates
    live_ms: int = 0  # from when on the devices were live for the first time
    organisations: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    spots: dict[str, str] = field(default_factory=dict)  # device to spot
    sites: dict[str, str] = field(default_factory=dict)  # device to site
    newcomer: str = ""  # a device that waits to be mounted
    label: str = field(default="", repr=False)  # the text of its label
    survey: str = ""  # what the first organisation asks visitors on their phones

    def device(self, place: Place) -> DeviceId:
        return device_id(self.devices[place.key])

    def places(self) -> dict[DeviceId, Place]:
        """Return every device's place."""
        return {self.device(place): place for place in places_of(the_world())}


class Folder:
    """The demo's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / "state.json"

    def open(self, *, now_ms: int, days: int) -> State:
        """Return the state of an earlier run, or a new one that begins now."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            return State(**json.loads(self._path.read_text()))
        until = now_ms // MINUTE_MS * MINUTE_MS
        state = State(
            since_ms=until - days * DAY_MS,
            until_ms=until,
            devices={
                place.key: new_device_id(place.device.kind) for place in places_of(the_world())
            },
        )
        self.save(state)
        return state

    def save(self, state: State, **changes: object) -> State:
        """Keep the changed state; it holds keys, so only its owner may read it."""
        changed = replace(state, **changes)  # type: ignore[arg-type]
        partial = self._path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(changed), file, indent=1)
        partial.replace(self._path)
        return changed

    def device(self, device: str) -> Path:
        """Return a device's own disk."""
        path = self.root / "devices" / device
        path.mkdir(parents=True, exist_ok=True)
        return path

    def outbox(self, device: str) -> Path:
        return self.device(device) / "outbox.db"

    def truths(self) -> list[Path]:
        """Return every truth file there is."""
        return sorted(self.root.glob("truth-*"))
