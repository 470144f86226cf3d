"""Modules that the forkserver of the suite imports once, so that stages start quickly.

Python's `forkserver` is a process that imports only this module, and forks a child for every stage.
Libraries that start threads (LanceDB, Polars, Arrow) are not imported here, since threads do not
survive a fork: each child imports them itself. `test_kills` checks that the forkserver has one
thread.
"""

from __future__ import annotations

import alembic.runtime.migration  # noqa: F401
import dagster._core.storage.event_log.sqlite.sqlite_event_log
import dagster._core.storage.sqlite_storage  # noqa: F401
import matplotlib.figure  # noqa: F401
import sentence_transformers  # noqa: F401
import torch  # noqa: F401
from transformers.models.bert import modeling_bert, tokenization_bert  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401
