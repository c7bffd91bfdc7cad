"""A factory's manifest, read: every row is judged, and no message shows a secret."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.label import label
from server.errors import RefusedError
from server.provisioning.manifest import BadRow, Row, read

HEAD = "serial,model,kind,hardware_revision,setup_secret"
SECRET = "23456789ABCDEFGH"


def rows(*lines: str, head: str = HEAD) -> tuple[list[Row], list[BadRow]]:
    return read("\n".join((head, *lines)).encode())


def test_a_row_is_read_with_and_without_check_character() -> None:
    typed = label("DC-2", SECRET[::-1]).typed
    good, bad = rows(f"dc-1,C2,counter,r1,{SECRET}", f"DC-2,C2,kiosk,r1,{typed}")
    assert bad == []
    assert [(r.line, r.label.serial, r.label.secret, r.kind) for r in good] == [
        (2, "DC-1", SECRET, "counter"),
        (3, "DC-2", SECRET[::-1], "kiosk"),
    ]


def test_a_date_means_its_end_and_a_time_itself() -> None:
    head = f"{HEAD},site,allowed_until"
    good, _ = rows(
        f"DC-1,m,counter,r,{SECRET},site-1,2026-05-01",
        f"DC-2,m,counter,r,{SECRET[::-1]},,2026-05-01T12:00+02:00",
        head=head,
    )
    assert [str(r.allowed_until) for r in good] == [
        "2026-05-01 23:59:59+00:00",
        "2026-05-01 12:00:00+02:00",
    ]
    assert [r.site for r in good] == ["site-1", ""]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("DC-1,m,counter,r", "number of fields"),
        (f"DC-1,m,counter,r,{SECRET},too much", "number of fields"),
        (f"D,m,counter,r,{SECRET}", "a serial is"),
        (f"DC-1,m,camera,r,{SECRET}", "kind is"),
        ("DC-1,m,counter,r,SHORT", "a set-up secret has"),
        ("DC-1,m,counter,r,0123456789ABCDEF", "a set-up secret has"),
        (f"DC-1,{'m' * 101},counter,r,{SECRET}", "100 characters"),
    ],
)
def test_a_bad_row_is_named_by_its_line(line: str, why: str) -> None:
    good, bad = rows(f"DC-9,m,counter,r,{SECRET[::-1]}", line)
    assert len(good) == 1
    assert [b.line for b in bad] == [3]
    assert why in bad[0].why
    assert SECRET not in bad[0].why


def test_neither_serial_nor_secret_may_come_twice() -> None:
    good, bad = rows(
        f"DC-1,m,counter,r,{SECRET}",
        f"dc-1,m,counter,r,{SECRET[::-1]}",
        f"DC-2,m,counter,r,{SECRET}",
    )
    assert len(good) == 1
    assert [b.why for b in bad] == [
        "this serial stands in line 2 already",
        "this set-up secret stands in line 2 already",
    ]


@pytest.mark.parametrize(
    "data", [b"", b"serial,model\n", f"{HEAD},price\n".encode(), HEAD.encode("utf-16"), b"\xff\xfe"]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError) as error:
        read(data)
    assert error.value.code == "bad_csv"


@given(st.binary(max_size=300))
def test_any_bytes_after_the_header_are_rows_good_or_bad(data: bytes) -> None:
    with suppress(RefusedError):
        good, bad = read(HEAD.encode() + b"\n" + data)
        assert not good
        assert all(row.line > 1 for row in bad)
