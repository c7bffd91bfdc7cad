"""What the decoder in use costs: measured here and now, on a small seeded batch."""

import os
import random
import time
from collections.abc import Callable, Sequence

from ext import COMPILED, Decoded, Place, pack_places, reference
from protocol.counter import Counts, Line, encode_counter
from protocol.frame import Quality, Span

Decode = Callable[[Sequence[bytes], bytes], Decoded]
FRAMES = 64
ENOUGH_S = 0.06
NOON_MS = 1_760_000_400_000


def decoder_words() -> str:
    """Return which decoder is in use; of the slow one also its price, and how to be rid of it."""
    if COMPILED:
        return "compiled"
    slow = frames_a_second(reference.decode_packed)
    price = f"the reference in Python, {slow:,.0f} frames/s here"
    fast = _built()
    if fast is None:
        return (
            f"{price}; install gcc and python3-dev and run `make demo` again for the compiled one"
        )
    quick = frames_a_second(fast)
    price = f"{price} where the compiled one does {quick:,.0f} ({quick / slow:,.0f} times as many)"
    if os.environ.get("VESTIBULE_NO_EXT") == "1":
        return f"{price}; unset VESTIBULE_NO_EXT to use it"
    return price


def frames_a_second(decode: Decode) -> float:
    """Return how many five-minute frames of two lines `decode` turns into rows a second."""
    frames, places = _batch(random.Random(1))  # noqa: S311 - the same for both decoders
    decode(frames, places)
    passes, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < ENOUGH_S:
        decode(frames, places)
        passes += 1
    return passes * len(frames) / seconds


def _batch(rng: random.Random) -> tuple[list[bytes], bytes]:
    frames = []
    for seq in range(FRAMES):
        span = Span(300_000 * seq, 300_000, NOON_MS, Quality.SYNCED)
        lines = tuple(
            Line(line, 1_000, 1_000, tuple(rng.randrange(9) for _ in range(10))) for line in (0, 1)
        )
        frames.append(encode_counter(Counts(span, 60, lines), boot_id=1, seq=seq, ordinal=1))
    return frames, pack_places([Place(1, 1, 0, 1 << 60)] * FRAMES)


def _built() -> Decode | None:
    """Return the compiled decoder if it was built, though it is not the one in use."""
    try:
        from ext._decoder import decode_packed
    except ImportError:
        return None
    return decode_packed
