"""The tour's kiosk: what is asked of it is pressed once, and stands in the book."""

from pathlib import Path

from agent.outbox import Outbox
from ops.demo.kiosk import SAD, VISITORS, OpenKiosk
from ops.demo.world import the_world
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.kiosk import Press, decode_presses
from simulators.faults import true_offset_ms
from simulators.truth import TruthFile, read

DEVICE = "fk-2345abcdefgh"


def journalled(outbox: Outbox) -> list[Press]:
    """Return the presses that an outbox holds, in order."""
    found: list[Press] = []
    for boot in outbox.boots:
        for held in outbox.read(boot, boot.first_seq, limit=100):
            header = read_header(held.frame)
            if header.kind == Kind.KIOSK:
                sections = read_body(held.frame, header)
                time = decode_time(need(sections, Section.TIME))
                found += decode_presses(need(sections, Section.PRESSES), time).presses
    return found


def test_what_is_asked_is_pressed_once_by_a_visitor_each_and_stands_in_the_book(
    tmp_path: Path,
) -> None:
    [planned] = [
        device
        for organisation in the_world()
        for site in organisation.sites
        for device in site.devices
        if device.tour
    ]
    with TruthFile(tmp_path / "truth-live") as truth:
        kiosk = OpenKiosk(
            planned.spec(DEVICE, end_ms=0),
            None,
            outbox_path=tmp_path / "outbox.db",
            true_offset_ms=true_offset_ms(),
            truth=truth,
        )
        kiosk.step()
        before = kiosk.generated  # simulated visitors may press meanwhile, too
        for _ in range(3):
            kiosk.press(SAD)
        assert kiosk.generated == before  # until its hardware is asked
        kiosk.step()
        kiosk.step()
        kiosk.press(SAD)
        kiosk.finish()
        kiosk.step()  # its agent has stopped: nobody can press
        presses = journalled(kiosk.outbox)
        assert kiosk.totals() == (len(presses), len(presses), 0)
        kiosk.close()
    asked = [press for press in presses if press.visit >= VISITORS]
    assert [(press.question, press.answer) for press in asked] == [(0, SAD)] * 3
    assert len({press.visit for press in asked}) == 3
    assert read(tmp_path / "truth-live").pressed() == len(presses)
