"""Words of the pages of rollouts: what they name by a state or a cause, and what a form says."""

from collections.abc import Iterable

import pytest

from protocol.release import COMPONENTS
from protocol.update import Class, Phase
from server.console.pages import CATALOGUES, LANGUAGES
from server.console.policies import NUMBERS, PRESETS, TICKS, WHENS
from server.console.rollout_new import values_of
from server.console.rollouts import HOWS
from server.firmware.counts import Verdict
from server.firmware.guards import Guard
from server.firmware.life import State as Stage
from server.firmware.plan import Why
from server.firmware.policy import OnHalt
from server.firmware.rollout import Kind
from server.firmware.standing import Act
from server.firmware.waves import Payload, State, WaveKind, WaveState
from server.firmware.why import Reason
from server.web import catalogue

NAMED: dict[str, Iterable[str]] = {
    "ro_": State,
    "stage_": Stage,
    "wave_": [*WaveState, WaveKind.STRAGGLERS, WaveKind.TAIL],
    "event_": Kind,
    "payload_": Payload,
    "halted_by_": Guard,
    "out_": Why,
    "halt_": OnHalt,
    "how_": HOWS,
    "do_": Act,
    "class_": Class,
    "fwhy_": Reason,
    "counted_": Verdict,
    "tl_fw_": Phase,
    "component_": COMPONENTS,
    "preset_": PRESETS,
    "when_": WHENS,
    "n_": [*NUMBERS, *TICKS, "on_halt", "when", "even"],
    "guard_": [Guard.FAIL_ABS, Guard.FAIL_PCT, Guard.LOST_ABS],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_state_reason_and_cause_has_its_words(language: str) -> None:
    texts = catalogue.load(CATALOGUES, LANGUAGES)[language].texts
    wanted = [f"{kind}{name.replace(' ', '_')}" for kind, all_ in NAMED.items() for name in all_]
    assert [key for key in wanted if key not in texts] == []


def test_a_line_of_settings_says_numbers_and_words() -> None:
    said = values_of("health_s = 300, log_level = info\nbroker =")
    assert said == {"health_s": 300, "log_level": "info", "broker": ""}
    endless = "9" * 5_000  # more digits than Python reads as a number
    assert values_of(f"health_s = {endless}") == {"health_s": endless}
