"""The golden vectors: encoders, readers and decoders agree with the released files."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ext.layout import Place
from protocol.counter import Counts
from protocol.crc import crc32c
from protocol.frame import FrameError, Kind, Reason, read_header
from protocol.gap import Gap
from protocol.health import Metrics
from protocol.kiosk import Presses
from protocol.session import Answer, Hello, Receipt
from tests.unit.test_decoders import decode_everywhere
from tests.vectors.cases import CASES, PLACE, REFUSED, Content, content_of, encode_content, refit
from tests.vectors.make import FOLDER, golden, outcome_of, plain

NAMES = sorted(path.stem for path in FOLDER.glob("*.hex"))
GOOD = [name for name in NAMES if not name.startswith("refused-")]
CONTENT: dict[str, type[Content]] = {
    "COUNTER": Counts,
    "KIOSK": Presses,
    "HEALTH": Metrics,
    "GAP": Gap,
    "HELLO": Hello,
    "RECEIPT": Receipt,
    "ANSWER": Answer,
}


def load(name: str) -> tuple[bytes, dict[str, Any]]:
    """Read a vector: its bytes and what they mean."""
    frame = bytes.fromhex((FOLDER / f"{name}.hex").read_text())
    return frame, json.loads((FOLDER / f"{name}.json").read_text())


def content_from(kind: str, values: dict[str, Any]) -> Content:
    """Return the content that `values` say."""
    if kind == "KIOSK":
        values = values | {"questionnaire": bytes.fromhex(values["questionnaire"])}
    return msgspec.convert(values, CONTENT[kind], builtin_types=(bytes,))


def test_every_kind_has_a_vector() -> None:
    assert {load(name)[1]["kind"] for name in GOOD} == {kind.name for kind in Kind}


@pytest.mark.parametrize("name", NAMES)
def test_all_decoders_give_what_the_vector_says(name: str) -> None:
    frame, meaning = load(name)
    where = Place(**meaning["place"]) if "place" in meaning else PLACE
    wanted = meaning["outcome"]
    found = outcome_of(decode_everywhere([frame], [where]))
    assert json.loads(json.dumps(found)) == wanted


@pytest.mark.parametrize("name", GOOD)
def test_the_reader_finds_what_the_vector_means(name: str) -> None:
    frame, meaning = load(name)
    header = read_header(frame)
    assert (header.version, Kind(header.kind).name) == (meaning["version"], meaning["kind"])
    assert (header.boot_id, header.seq) == (meaning["boot_id"], meaning["seq"])
    assert (header.ordinal, header.digest) == (meaning["ordinal"], meaning["digest"])
    content = content_of(frame)
    assert content == content_from(meaning["kind"], meaning["meaning"])
    assert json.loads(json.dumps(plain(content))) == meaning["meaning"]


@pytest.mark.parametrize("name", GOOD)
def test_the_encoder_writes_the_vectors_bytes(name: str) -> None:
    frame, meaning = load(name)
    content = content_from(meaning["kind"], meaning["meaning"])
    again = encode_content(
        content, boot_id=meaning["boot_id"], seq=meaning["seq"], ordinal=meaning["ordinal"]
    )
    assert refit(again + CASES[name].extra) == frame


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_reader_refuses_what_the_decoders_refuse(name: str) -> None:
    frame, meaning = load(f"refused-{name}")
    with pytest.raises(FrameError) as caught:
        content_of(frame)
    assert caught.value.reason is Reason[meaning["outcome"]["reason"]]


def test_the_released_files_are_what_the_script_makes() -> None:
    made = golden()
    assert sorted(made) == NAMES
    for name, (frame, meaning) in made.items():
        assert load(name) == (frame, json.loads(json.dumps(meaning)))


def test_the_readmes_annotated_frame_is_the_vector() -> None:
    readme = (Path(__file__).parents[2] / "protocol" / "README.md").read_text()
    block = readme.split("<!-- counter-5min -->")[1].split("```")[1]
    rows = [line.split("|")[0].split() for line in block.splitlines() if "|" in line]
    said = bytes.fromhex("".join("".join(row[1:]) for row in rows))
    assert [int(row[0]) for row in rows] == _offsets(rows)
    frame, _ = load("counter-5min")
    assert said == frame
    assert crc32c(frame[32:]) == read_header(frame).digest


def _offsets(rows: list[list[str]]) -> list[int]:
    return [sum(len(row) - 1 for row in rows[:at]) for at in range(len(rows))]
