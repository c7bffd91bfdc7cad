"""What a rollout decides, written down a second time: plainly, slowly, and from the words alone.

Nothing is added up here: every question is answered by looking at each device again. What somebody
has acknowledged is a mark on the devices that had ended by then.
"""

from typing import Any

from server.firmware.policy import Policy

PLANNED, OFFERED = "planned", "offered"
WAY = ["accepted", "downloading", "ready", "waiting", "installing", "rebooting", "trial"]
EARLY = [OFFERED, *WAY[:4]]
FAILED = ["failed", "reverted by device", "timed out"]
GONE = ["excluded", "superseded", "cancelled", "unreachable"]
OURS = ["timed out", "lost", "unreachable", "cancelled", "superseded"]
RETRIED = ["network", "storage", "timeout", "internal"]


class Device:
    """One device: what is known of it."""

    def __init__(self, wave: int) -> None:
        self.wave = self.pool = wave
        self.state, self.name, self.attempt = PLANNED, PLANNED, 1
        self.attempted = self.acknowledged = False
        self.tries, self.seq, self.bytes = dict.fromkeys(RETRIED, 0), 0, 0
        self.told: float | None = None
        self.due: Any = None
        self.began: Any = None
        self.spoke: Any = None
        self.put_off: float | None = None

    def over(self) -> bool:
        return self.state not in [PLANNED, OFFERED, *WAY]

    def counts(self) -> bool:
        return self.state not in GONE and not self.acknowledged


class Reference:
    """A rollout that runs, with its devices."""

    def __init__(self, policy: Policy, sizes: tuple[int, ...], now: float) -> None:
        self.policy, self.now, self.state = policy, now, "running"
        self.devices = [Device(n) for n, size in enumerate(sizes, 1) for _ in range(size)]
        self.tail = len(sizes) + 1
        self.waves = dict.fromkeys(range(1, self.tail + 1), "pending") | {0: "open"}
        self.met: dict[int, float] = {}
        self.guards: list[str] = []

    # -- questions

    def of(self, pool: int) -> list[Device]:
        return [device for device in self.devices if device.pool == pool]

    def left(self, pool: int) -> list[Device]:
        return [device for device in self.of(pool) if not device.over()]

    def current(self) -> int | None:
        for wave in range(1, self.tail + 1):
            empty_tail = wave == self.tail and not self.of(wave)
            if self.waves[wave] not in ["passed", "skipped"] and not empty_tail:
                return wave
        return None

    def enough(self, wave: int) -> bool:
        judged = [d for d in self.of(wave) if d.counts()]
        refused = [d for d in judged if d.state == "rejected" and not d.attempted]
        tried = [d for d in judged if d.attempted]
        good = [d for d in tried if d.state == "confirmed"]
        assert not set(refused) & set(tried)
        if len(tried) < min(len(judged), self.policy.gate.min_sample):
            return False
        if not tried:
            return self.waves[wave] == "soaking"
        return 100 * len(good) >= self.policy.gate.success_pct * len(tried)

    def broken(self, pool: int) -> str | None:
        tried = [d for d in self.of(pool) if d.counts() and d.attempted]
        ended = [d for d in tried if d.over()]
        failed = [d for d in ended if d.state in FAILED]
        limits = self.policy.guards
        known = [d for d in self.devices if d.counts()]  # whatever wave they are of
        lost = [d for d in known if d.state == "lost"]
        if len([d for d in known if d.state in FAILED]) + len(lost) >= limits.fail_abs:
            return "fail_abs"
        if len(lost) >= limits.lost_abs:
            return "lost_abs"
        share = bool(failed) and 100 * len(failed) >= limits.fail_pct * len(ended)
        return "fail_pct" if len(ended) >= limits.min_sample and share else None

    def may_offer(self, device: Device) -> bool:
        return (
            self.state == "running"
            and device.state == PLANNED
            and self.waves[device.pool] not in ["pending", "failed"]
            and device.due <= self.now
        )

    # -- what a device's end means

    def became(self, device: Device, state: str) -> None:
        reopened = device.over()
        device.state, device.name, device.due = state, state, None
        if reopened:
            device.acknowledged = False
        if not device.over():
            return
        if guard := self.broken(device.pool):
            self.halt(guard, device.pool)
        self.judge(device.pool, worse=state != "confirmed")

    def judge(self, wave: int, *, worse: bool) -> None:
        if self.waves[wave] not in ["open", "soaking"] or wave == 0:
            return
        if self.state not in ["running", "paused", "halted"]:
            return
        enough = self.enough(wave)
        if self.waves[wave] == "open" and enough:
            self.waves[wave], self.met[wave] = "soaking", self.now
        elif self.waves[wave] == "soaking" and worse and not enough:
            self.waves[wave] = "open"
        if not enough and not self.left(wave):
            self.halt("exhausted", wave)

    def halt(self, guard: str, wave: int) -> None:
        if self.state in ["running", "paused"]:
            self.state = "halted"
            self.guards.append(guard)
            if self.waves[wave] in ["open", "soaking"]:
                self.waves[wave] = "failed"

    # -- what happens

    def offer(self, device: Device) -> None:
        if self.waves[device.wave] in ["passed", "skipped"] and device.wave != self.tail:
            device.pool = 0
        device.state = device.name = OFFERED
        device.told = self.now

    def withdrawn(self) -> bool:
        return self.state in ["cancelling", "cancelled"]

    def plan_again(self, device: Device, wait: float) -> None:
        device.state = device.name = PLANNED
        device.attempt, device.seq, device.bytes = device.attempt + 1, 0, 0
        device.told = device.began = device.spoke = None
        device.due = self.now + wait

    def failed(self, device: Device, kind: str) -> bool:
        budget = getattr(self.policy.retries, kind) if kind in RETRIED else 0
        if self.withdrawn() or device.tries.get(kind, 0) >= budget:
            return False
        wait = self.policy.retries.backoff_s * 2 ** device.tries[kind]
        device.tries[kind] += 1
        device.attempted = True
        self.plan_again(device, min(wait, self.policy.retries.most_backoff_s))
        return True

    def said(
        self,
        device: Device,
        attempt: int,
        seq: int,
        phase: str,
        kind: str,
        size: int,
        *,
        fresh: bool,
    ) -> None:
        ends = {"confirmed": "confirmed", "failed": "failed", "rejected": "rejected",
                "reverted": "reverted by device"}  # fmt: skip
        if phase == "confirmed" and not fresh:
            return
        if attempt < device.attempt:  # a try that was given up; did it install all the same?
            rests = device.state in [PLANNED, OFFERED]
            unbegun = device.state in OURS and device.began is None
            if phase in ["confirmed", "reverted"] and (rests or unbegun):
                device.attempt, device.seq, device.attempted = attempt, seq, True
                device.told = self.now if device.told is None else device.told
                device.began = self.now if device.began is None else device.began
                self.became(device, ends[phase])
        elif device.over():
            if device.told is None or phase not in ends:
                return
            tries = 1 + sum(device.tries.values())
            later = device.attempt < attempt <= tries or (
                attempt == device.attempt and seq > device.seq
            )
            if device.state == "confirmed" and phase == "reverted" and later:
                device.attempt, device.seq = attempt, seq
                self.became(device, "reverted by device")
            elif device.state in OURS and attempt == device.attempt:
                device.attempted = device.attempted or phase != "rejected"
                device.seq = max(seq, device.seq)
                self.became(device, ends[phase])
        elif attempt > device.attempt or device.told is None:
            return
        elif phase == "deferred":
            if device.state in EARLY:
                device.put_off = self.now if device.put_off is None else device.put_off
                if self.now - device.put_off >= self.policy.timers.most_deferred_s:
                    self.became(device, "rejected")
                elif self.withdrawn():
                    self.became(device, "cancelled")
                else:
                    self.moved(device, seq, "waiting_idle", 0)
        elif phase in ends:
            if phase != "failed" or not self.failed(device, kind):
                device.attempted = device.attempted or phase != "rejected"
                device.seq = max(seq, device.seq)
                self.became(device, ends[phase])
        else:
            self.moved(device, seq, phase, size)

    def moved(self, device: Device, seq: int, phase: str, size: int) -> None:
        order = [PLANNED, OFFERED, *WAY]
        step = "waiting" if phase.startswith("waiting") else phase
        new, old = order.index(step), order.index(device.state)
        other = new == old and device.name != phase and seq > device.seq
        if new > old or other or (device.name == phase and size > device.bytes):
            device.state, device.name, device.attempted = step, phase, True
            device.seq, device.bytes = max(seq, device.seq), max(size, device.bytes)
            device.began = self.now if device.began is None else device.began
            device.spoke = self.now

    def looked_at(self, device: Device, since: float | None, away: float) -> None:
        timers = self.policy.timers
        if device.state == OFFERED:
            device.state = device.name = PLANNED
            device.due = self.now + timers.defer_s
        elif device.state in WAY:
            if since is None and away >= timers.lost_s:
                self.became(device, "lost")
            elif self.now >= device.began + timers.attempt_s:
                self.became(device, "timed out")
            elif since is not None:
                limit = max(device.spoke, since) + getattr(timers, f"{device.name}_s")
                early = device.state in EARLY
                if self.now >= limit and not (early and self.failed(device, "timeout")):
                    self.became(device, "timed out")

    def expire(self, wave: int) -> None:
        for device in self.devices:
            if device.wave == wave and device.state == PLANNED:
                self.became(device, "failed" if device.attempted else "unreachable")

    def leaves(self, device: Device) -> None:
        if not device.over():
            self.became(device, "lost" if device.attempted else "cancelled")

    def superseded(self, device: Device) -> None:
        if device.state in [PLANNED, *EARLY]:
            self.became(device, "superseded")

    def mismatched(self, device: Device) -> None:
        if device.state == "confirmed":
            self.became(device, "reverted by device")

    def joins(self, number: int) -> None:
        if self.state in ["running", "paused", "halted"]:
            self.devices += [Device(self.tail) for _ in range(number)]
            for device in self.devices[-number:]:
                device.due = self.now
            if self.waves[self.tail] in ["passed", "skipped"]:
                self.waves[self.tail] = "pending"

    def pause(self) -> None:
        if self.state == "running":
            self.state = "paused"

    def resume(self) -> None:
        if self.state not in ["paused", "halted"]:
            return
        for wave, state in self.waves.items():
            if wave and state in ["open", "failed"] and not self.left(wave):
                self.waves[wave] = "skipped"
            elif state == "failed":
                self.waves[wave] = "open"
        for device in self.devices:
            device.acknowledged = device.over()
        self.state = "running"

    def cancel(self) -> None:
        if self.state in ["running", "paused", "halted"]:
            self.state = "cancelling"

    def take_back(self) -> None:
        if self.state == "cancelling":
            for device in self.devices:
                if device.state in [PLANNED, OFFERED]:
                    self.became(device, "cancelled")

    def tick(self) -> None:
        if self.state == "cancelling" and all(device.over() for device in self.devices):
            self.state = "cancelled"
        if self.state != "running":
            return
        wave = self.current()
        if wave and self.waves[wave] in ["open", "soaking"]:
            self.judge(wave, worse=False)
            soaked = self.now - self.met.get(wave, self.now) >= self.policy.gate.soak_s
            if self.waves[wave] == "soaking" and soaked and self.enough(wave):
                self.waves[wave] = "passed"
            wave = self.current()
        if wave and self.waves[wave] == "pending" and self.state == "running":
            self.waves[wave] = "open"
            self.judge(wave, worse=False)
        if wave is None and all(device.over() for device in self.devices):
            missed = [d for d in self.devices if d.state in ("unreachable", "rejected")]
            nobody = all(d.state != "confirmed" for d in self.devices)
            self.state = "completed with stragglers" if missed or nobody else "completed"
