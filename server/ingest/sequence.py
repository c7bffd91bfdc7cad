"""What is next in a boot's sequence. Pure: this is the rule that makes storing exactly once.

A frame covers `seq` to `to_seq` (one number, or a gap's range). Given the cursor, it is
- taken, if the cursor lies in its range: a gap may begin before the cursor, where a part of its
  range was stored already;
- a repeat, if its range ends below the cursor: stored before;
- beyond a hole, if its range begins above the cursor: not stored; the receipt tells the agent
  where to go back to (go-back-N), so nothing need be kept here.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Taken(NamedTuple):
    """Positions in the given frames, each in the order of the sequence."""

    taken: list[int]
    repeats: list[int]
    beyond: list[int]
    next_seq: int


def take(next_seq: int, frames: Sequence[tuple[int, int]]) -> Taken:
    """Sort `frames`, given as (seq, to_seq), into what is next, what was and what cannot be yet.

    Of two frames with one `seq` the first given wins.
    """
    taken: list[int] = []
    repeats: list[int] = []
    beyond: list[int] = []
    for at in sorted(range(len(frames)), key=lambda i: frames[i][0]):
        seq, to_seq = frames[at]
        if to_seq < next_seq:
            repeats.append(at)
        elif seq <= next_seq:
            taken.append(at)
            next_seq = to_seq + 1
        else:
            beyond.append(at)
    return Taken(taken, repeats, beyond, next_seq)


def difference(last: Iterable[int], sums: Iterable[int], new: Iterable[int]) -> tuple[int, ...]:
    """Return new - (last + sums) of each u32 total, as the nearest number to zero."""
    return tuple(
        ((n - b - s + 0x8000_0000) & 0xFFFF_FFFF) - 0x8000_0000
        for b, s, n in zip(last, sums, new, strict=True)
    )
