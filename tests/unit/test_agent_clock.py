"""What the agent believes of UTC."""

from agent.clock import BUILD_MS, TEN_YEARS_MS, ManualClock, SystemClock, kernel_synced
from protocol.frame import Quality

NOW = BUILD_MS + 30 * 86_400_000


def clock(utc_ms: int, *, synced: bool = False, floor_ms: int = 0) -> SystemClock:
    return SystemClock(floor_ms=floor_ms, utc_ms=lambda: utc_ms, synced=lambda: synced)


def utc(clock: SystemClock) -> int:
    return clock.offset()[1] + clock.monotonic_ms()


def test_1970_is_no_time_until_the_server_tells_it() -> None:
    lost = clock(1_000, synced=True)
    assert lost.offset() == (Quality.NONE, 0)
    lost.learn(NOW, rtt_ms=200)
    assert lost.offset()[0] is Quality.ESTIMATED
    assert abs(utc(lost) - NOW - 100) < 1_000


def test_2038_and_yesterday_are_not_believed_either() -> None:
    assert clock(NOW + TEN_YEARS_MS + NOW).offset()[0] is Quality.NONE
    assert clock(NOW, floor_ms=NOW + 1_000_000).offset()[0] is Quality.NONE


def test_a_plausible_clock_is_an_estimate_and_a_disciplined_one_is_synced() -> None:
    assert clock(NOW).offset()[0] is Quality.ESTIMATED
    assert clock(NOW, synced=True).offset()[0] is Quality.SYNCED


def test_the_server_overrules_an_undisciplined_clock_by_more_than_five_seconds() -> None:
    wrong = clock(NOW)
    wrong.learn(NOW + 4_000, rtt_ms=0)
    assert abs(utc(wrong) - NOW) < 1_000
    wrong.learn(NOW + 3_600_000, rtt_ms=0)
    assert abs(utc(wrong) - NOW - 3_600_000) < 1_000


def test_an_answer_that_took_too_long_teaches_nothing() -> None:
    lost = clock(0)
    lost.learn(NOW, rtt_ms=60_000)
    lost.learn(5, rtt_ms=1)
    assert lost.offset()[0] is Quality.NONE


def test_the_real_clocks_can_be_read() -> None:
    real = SystemClock()
    assert real.monotonic_ms() > 0
    assert kernel_synced() in {True, False}


async def test_virtual_time_wakes_who_waits_for_it() -> None:
    clock = ManualClock(utc_ms=5)
    clock.advance(10)
    assert clock.offset() == (Quality.SYNCED, 5)
    clock.set_utc(100, Quality.ESTIMATED)
    assert clock.offset() == (Quality.ESTIMATED, 90)
