"""Which sequences share a forward pass."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return packs of sequence numbers, each of at most `budget` tokens, longest sequence first.

    Best fit decreasing: at most 11/9 of the minimum number of packs, plus 1; with lengths well
    below the budget, all packs but the last are at least 97% full. Nothing is padded or cut. A
    sequence longer than the budget is a pack of its own. Equal lengths keep their order, so that
    the same lengths give the same packs.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the pack), ascending
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, chosen = room.pop(at)
            packs[chosen].append(number)
        else:
            left, chosen = budget, len(packs)
            packs.append([number])
        insort(room, (left - length, chosen))
    return packs
