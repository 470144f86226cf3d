"""Token ids on disk: each text gets its own back, and memory does not grow with their number."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from entropylong_assets.storage.spool import TokenSpool


def test_every_text_gets_its_own_tokens_back() -> None:
    draw = random.Random(3)
    texts = {f"d{i:04d}-00001": [draw.randrange(2**32) for _ in range(i % 7)] for i in range(500)}
    names = list(texts)
    draw.shuffle(names)
    with TokenSpool() as spool:
        for start in range(0, 500, 64):
            part = names[start : start + 64]
            spool.add(part, [texts[name] for name in part])
        for size in (1, 0, 60, 500):
            wanted = draw.sample(names, size)
            assert spool.take([*wanted, *wanted[:3]]) == {name: texts[name] for name in wanted}
        for unknown in ("a", "d0100-00002", "z"):
            with pytest.raises(KeyError, match=unknown):
                spool.take([names[0], unknown])


def test_an_empty_spool_holds_nothing() -> None:
    with TokenSpool() as spool:
        assert spool.take([]) == {}
        with pytest.raises(KeyError):
            spool.take(["a"])


def test_memory_holds_no_tokens() -> None:
    """4 million tokens take 16 MB as 32-bit integers, and 150 MB as Python lists."""
    tracemalloc.start()
    try:
        with TokenSpool() as spool:
            for start in range(0, 2000, 100):
                names = [f"d{i}" for i in range(start, start + 100)]
                spool.add(names, [[7] * 2000] * 100)
            spool.take(["d0"])
            held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2_000_000
