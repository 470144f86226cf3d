"""Fewer heaps of glibc, so that a process takes less memory.

glibc gives threads heaps of their own, up to eight per core, and what a thread has freed stays in
its heap. LanceDB's threads come and go, and each heap keeps what one of them needed at most. With
one heap per core, `embedding_index` over 100,000 chunks takes 1.2 GiB instead of 1.5
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # of malloc.h


def limit_heaps() -> None:
    """Allow one heap per core, and at least two; call it before other threads start.

    Does nothing if the environment has `MALLOC_ARENA_MAX`, or without glibc.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, max(2, os.cpu_count() or 2))
