"""Processes that the tests start in order to kill them, forked from a server that is warm.

Python has one forkserver for a process, with the modules that its first user asked for. Were each
test file to ask for its own, the suite would depend on which of them a worker takes first.
"""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["entropylong_assets_tests.faults.warm"])
