"""The number of glibc's heaps, counted by glibc itself (`malloc_info`)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

THREADS_PER_CORE = 12
COUNT = f"""
import ctypes, os, threading
{{statement}}
libc, done = ctypes.CDLL(None), threading.Event()
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
number = {THREADS_PER_CORE} * os.cpu_count()
barrier = threading.Barrier(number + 1)

def work():
    libc.malloc(50_000)
    barrier.wait()
    done.wait()

threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
for thread in threads:
    thread.start()
barrier.wait()
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
done.set()
"""


def count_heaps(statement: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(statement=statement)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="without glibc")
def test_a_process_has_no_more_heaps_than_cores() -> None:
    """Each heap keeps what LanceDB's threads have freed: hundreds of MiB in all."""
    cores = max(2, os.cpu_count() or 2)
    assert count_heaps("") > cores, "glibc itself makes no more"
    assert count_heaps("import entropylong_assets") <= cores
    own = {"MALLOC_ARENA_MAX": str(cores + 1)}
    assert count_heaps("import entropylong_assets", **own) == cores + 1
