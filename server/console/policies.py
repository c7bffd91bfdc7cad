"""A rollout's policy as a form: presets, and every number that they set, to be changed. Pure.

A preset fills the form in; what is sent is what stands in it. What no field shows is as the preset
has it, and where it has nothing of it, as every policy by default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from server.firmware.policy import Gate, Guards, OnHalt, Policy, WaveRule, read_policy
from server.firmware.windows import Always, Rules
from server.fleet.checks import FieldError

WAVES = 5
"""As many can be written in the form; more by the command line."""
ALL = ("all", "rest", "alla", "resten")
WHENS = ("closed", "clock", "quiet", "any")
"""When devices install: while the shop is closed; where one never closes besides in a stretch of
the clock, or in its own quietest hours; or at any time."""

PRESETS: Mapping[str, Policy] = {
    "usual": Policy(),
    "careful": Policy(
        waves=(
            WaveRule(count=10, stratified=True),
            WaveRule(percent=5, stratified=True),
            WaveRule(percent=25, stratified=True),
            WaveRule(),
        ),
        gate=Gate(success_pct=98, min_sample=10, soak_s=2 * 86_400),
        guards=Guards(fail_abs=2, fail_pct=5, min_sample=10, lost_abs=1),
        on_halt=OnHalt.REVERT_ALL,
    ),
    "urgent": Policy(
        waves=(WaveRule(count=10, stratified=True), WaveRule()),
        gate=Gate(success_pct=90, min_sample=5, soak_s=3_600),
        windows=None,
        urgent=True,
        priority=8,
    ),
}


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the form: where it stands in the policy, its bounds, and seconds in its unit."""

    part: str
    field: str
    low: float
    high: float
    unit_s: int = 0
    step: str = "1"

    def shown(self, policy: Policy) -> str:
        """Return the number as the form has it."""
        value = getattr(getattr(policy, self.part) if self.part else policy, self.field)
        return f"{value / self.unit_s:g}" if self.unit_s else f"{value:g}"

    def read(self, name: str, text: str) -> int | float:
        """Return what a text says. Raises FieldError."""
        try:
            found = float(text.replace(",", "."))
        except ValueError:
            raise FieldError(name, "expected a number") from None
        if not self.low <= found <= self.high:
            raise FieldError(name, f"expected {self.low:g} to {self.high:g}, got {text[:20]}")
        if self.unit_s:
            return round(found * self.unit_s)
        return found if self.step == "any" else int(found)


NUMBERS: Mapping[str, Number] = {
    "success_pct": Number("gate", "success_pct", 1, 100, step="any"),
    "gate_sample": Number("gate", "min_sample", 1, 1_000_000),
    "soak_h": Number("gate", "soak_s", 0, 720, 3_600, step="any"),
    "fail_abs": Number("guards", "fail_abs", 1, 1_000_000),
    "fail_pct": Number("guards", "fail_pct", 0.1, 100, step="any"),
    "guard_sample": Number("guards", "min_sample", 1, 1_000_000),
    "lost_abs": Number("guards", "lost_abs", 1, 1_000_000),
    "controls": Number("", "controls", 0, 500),
    "in_flight": Number("caps", "in_flight", 1, 1_000_000),
    "site": Number("caps", "site", 1, 1_000),
    "trial_min": Number("device", "trial_s", 1, 1_440, 60),
}
GATE = ("success_pct", "gate_sample", "soak_h")
GUARDS = ("fail_abs", "fail_pct", "guard_sample", "lost_abs", "controls")
PACE = ("in_flight", "site", "trial_min")
TICKS: Mapping[str, tuple[str, str]] = {
    "health": ("guards", "health"),
    "counts": ("guards", "counts"),
    "override_freezes": ("", "override_freezes"),
    "admit": ("joiners", "admit"),
}


def form_of(policy: Policy) -> dict[str, str]:
    """Return the form that says this policy."""
    found = {name: number.shown(policy) for name, number in NUMBERS.items()}
    for name, (part, field) in TICKS.items():
        holder = getattr(policy, part) if part else policy
        found[name] = "yes" if getattr(holder, field) else ""
    for number, wave in enumerate(policy.waves[:WAVES], 1):
        found[f"wave{number}"] = _amount(wave)
        found[f"filter{number}"] = wave.filter
    found["even"] = "yes" if any(wave.stratified for wave in policy.waves) else ""
    found["when"] = _when(policy)
    found["on_halt"] = policy.on_halt.value
    return found


def policy_of(form: Mapping[str, str]) -> Policy:
    """Return the policy that a form says. Raises FieldError, PolicyError."""
    base = PRESETS.get(form.get("preset", ""), PRESETS["usual"])
    parts: dict[str, dict[str, object]] = {}
    for name, number in NUMBERS.items():
        if form.get(name):
            parts.setdefault(number.part, {})[number.field] = number.read(name, form[name])
    for name, (part, field) in TICKS.items():
        parts.setdefault(part, {})[field] = bool(form.get(name))
    own = parts.pop("", {})
    for part, values in parts.items():
        own[part] = msgspec.structs.replace(getattr(base, part), **values)
    how = form.get("on_halt") or base.on_halt.value
    if how not in list(OnHalt):
        raise FieldError("on_halt", f"expected {', '.join(OnHalt)}")
    when = form.get("when") or "closed"
    if when not in WHENS:
        raise FieldError("when", f"expected {', '.join(WHENS)}")
    own |= {"on_halt": OnHalt(how), "waves": _waves(form), "windows": _rules(base, when)}
    own["urgent"] = base.urgent and when == "any"
    return read_policy(msgspec.json.encode(msgspec.structs.replace(base, **own)))


def _waves(form: Mapping[str, str]) -> tuple[WaveRule, ...]:
    found = []
    for number in range(1, WAVES + 1):
        name = f"wave{number}"
        amount, wanted = form.get(name, ""), form.get(f"filter{number}", "")
        if amount or wanted:
            found.append(_wave(name, amount, wanted, even=bool(form.get("even"))))
    if not found:
        raise FieldError("wave1", "say how many devices come first")
    return tuple(found)


def _wave(name: str, amount: str, wanted: str, *, even: bool) -> WaveRule:
    text = amount.strip().lower()
    if not text or text in ALL:
        return WaveRule(filter=wanted)
    share = text.endswith("%")
    try:
        number = float(text.rstrip("% ").replace(",", "."))
    except ValueError:
        raise FieldError(name, "expected a number, a share such as 10 %, or: rest") from None
    if share and 0 < number <= 100:
        return WaveRule(percent=number, filter=wanted, stratified=even)
    if not share and number == int(number) and 1 <= number <= 1_000_000:
        return WaveRule(count=int(number), filter=wanted, stratified=even)
    raise FieldError(name, "expected from 1 device to 1,000,000, or above 0 to 100 %")


def _amount(wave: WaveRule) -> str:
    if wave.count is not None:
        return str(wave.count)
    return "rest" if wave.percent is None else f"{wave.percent:g} %"


def _when(policy: Policy) -> str:
    if policy.windows is None or policy.urgent:
        return "any"
    return {Always.CLOCK: "clock", Always.QUIET: "quiet"}.get(policy.windows.always, "closed")


def _rules(base: Policy, when: str) -> Rules | None:
    if when == "any":
        return None
    always = {"clock": Always.CLOCK, "quiet": Always.QUIET}.get(when, Always.EXCLUDE)
    return replace(base.windows or Rules(), always=always)
