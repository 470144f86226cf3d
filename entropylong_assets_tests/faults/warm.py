"""What the forkserver of the suite loads once, so that a stage to be killed starts in little time.

Python's `forkserver` is a process of its own that imports this module and nothing else, and forks
a child for every stage. What starts threads is not among them (LanceDB, Polars, Arrow): no thread
survives a fork, and each child imports these itself. `test_kills` holds that the forkserver has
one thread.
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
