"""What pages of rollouts name by a state, a reason or a cause has its words in the catalogue."""

from collections.abc import Iterable

import pytest

from protocol.release import COMPONENTS
from protocol.update import Class, Phase
from server.console.pages import CATALOGUES, LANGUAGES
from server.console.policies import NUMBERS, PRESETS, TICKS, WHENS
from server.console.rollouts import HOWS
from server.firmware.counts import Verdict
from server.firmware.guards import Guard
from server.firmware.life import State as Stage
from server.firmware.plan import Why
from server.firmware.policy import OnHalt
from server.firmware.rollout import Kind
from server.firmware.standing import Act
from server.firmware.waves import State, WaveKind, WaveState
from server.firmware.why import Reason
from server.web import catalogue

NAMED: dict[str, Iterable[str]] = {
    "ro_": State,
    "stage_": Stage,
    "wave_": [*WaveState, WaveKind.STRAGGLERS, WaveKind.TAIL],
    "turn_": Kind,
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
