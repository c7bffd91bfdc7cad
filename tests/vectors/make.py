"""Write the golden vectors: `v<version>/<name>.hex` and what it means beside it, `<name>.json`.

Released files are frozen: this adds what is missing and refuses to change what is there.

    python -m tests.vectors.make
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from ext.layout import Decoded, Record, Status
from ext.reference import decode
from protocol.frame import Kind, Reason, read_header
from protocol.kiosk import Presses
from tests.vectors.cases import CASES, PLACE, REFUSED, Content, content_of, frame_of

FOLDER = Path(__file__).parent / "v1"


def golden() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return every vector's frame and meaning by name."""
    found = {name: frame_of(case) for name, case in CASES.items()}
    vectors = {name: (frame, describe(frame)) for name, frame in found.items()}
    for name, (reason, build) in REFUSED.items():
        frame = build()
        outcome = outcome_of(decode([frame], [PLACE]))
        if outcome["reason"] != reason.name:
            raise AssertionError(f"{name} is refused as {outcome['reason']}, not {reason.name}")
        vectors[f"refused-{name}"] = (frame, {"outcome": outcome})
    return vectors


def describe(frame: bytes) -> dict[str, Any]:
    """Return header, meaning, place and outcome of a good frame as plain JSON values."""
    header = read_header(frame)
    return {
        "version": header.version,
        "kind": Kind(header.kind).name,
        "boot_id": header.boot_id,
        "seq": header.seq,
        "ordinal": header.ordinal,
        "digest": header.digest,
        "meaning": plain(content_of(frame)),
        "place": PLACE._asdict(),
        "outcome": outcome_of(decode([frame], [PLACE])),
    }


def plain(content: Content) -> dict[str, Any]:
    """Return `content` as JSON values; a questionnaire's hash in hexadecimal."""
    values: dict[str, Any] = msgspec.to_builtins(content, builtin_types=(bytes,))
    if isinstance(content, Presses):
        values["questionnaire"] = content.questionnaire.hex()
    return values


def outcome_of(decoded: Decoded) -> dict[str, Any]:
    """Return what became of one frame: its record's fields, its buffers in hexadecimal."""
    (record,) = decoded.frames()
    fields = dict(zip(Record._fields, record, strict=True))
    return {
        **fields,
        "status": Status(record.status).name,
        "reason": Reason(record.reason).name,
        "readings": decoded.readings.hex(),
        "presses": decoded.presses.hex(),
        "count_deltas": decoded.count_deltas.hex(),
        "press_deltas": decoded.press_deltas.hex(),
    }


def main() -> int:
    """Write what is missing; exit 1 if a released vector would change."""
    FOLDER.mkdir(exist_ok=True)
    changed = [name for name, vector in golden().items() if not _write(name, *vector)]
    for name in changed:
        sys.stderr.write(f"{name}: frozen, but the code now gives something else\n")
    return 1 if changed else 0


def _dump(frame: bytes) -> str:
    """Return hexadecimal, 16 bytes a line."""
    return "".join(frame[at : at + 16].hex(" ") + "\n" for at in range(0, len(frame), 16))


def _readable(meaning: dict[str, Any]) -> str:
    """Return JSON with one field a line, and lists of numbers on theirs."""
    text = json.dumps(meaning, indent=1) + "\n"
    return re.sub(r"\[[-\d,.\s]*\]", lambda found: " ".join(found[0].split()), text)


def _write(name: str, frame: bytes, meaning: dict[str, Any]) -> bool:
    """Write both files, or return whether those that are there say the same."""
    files = {
        FOLDER / f"{name}.hex": _dump(frame),
        FOLDER / f"{name}.json": _readable(meaning),
    }
    for path, text in files.items():
        if not path.exists():
            path.write_text(text)
    return all(path.read_text() == text for path, text in files.items())


if __name__ == "__main__":
    sys.exit(main())
