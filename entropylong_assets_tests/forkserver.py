"""Processes that the tests start in order to kill them, forked from a warm server.

A process has one forkserver, which imports the modules that its first user sets. If each test file
set its own, the result would depend on which of them a pytest worker runs first.
"""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["entropylong_assets_tests.faults.warm"])
