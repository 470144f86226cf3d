"""What ends a step at once, and what is tried again.

A transient fault (network, a full device, a conflict of two writers) is retried with growing
pauses. Bad input, a wrong setting or a fault in our code would fail the same way again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

RETRIES = dg.RetryPolicy(
    max_retries=3, delay=15, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""Tries again after about 15, 45 and 105 seconds; only what `plain_errors` lets through."""

# Errors of the operating system that say something about the request, not about the moment.
_LASTING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

# Classes of libraries that stages import late, by name, so that they need not be imported here.
_TRANSIENT_NAMES = frozenset(
    {
        "OutOfMemoryError",  # torch.cuda: another process may hold the memory for a while
        "ClientConnectionError",  # aiohttp, under s3fs, gcsfs and hf://
        "ServerTimeoutError",
        "HTTPError",
        "HfHubHTTPError",
        "EndpointConnectionError",  # botocore
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "FSTimeoutError",  # fsspec
    }
)

# LanceDB reports a lost race of two writers as a plain RuntimeError or OSError.
_TRANSIENT_WORDS = ("no space left", "commit conflict", "concurrent commit", "too many concurrent")


def is_transient(error: BaseException) -> bool:
    """Whether the same step may well succeed in a minute."""
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, ConnectionError | TimeoutError | OSError):
        return True
    if _TRANSIENT_NAMES & {cls.__name__ for cls in type(error).__mro__}:
        return True
    return any(words in str(error).lower() for words in _TRANSIENT_WORDS)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends a step with one line for a user's mistake; lets transient faults through to be
    retried; any other error ends the step too, with its traceback as the cause."""
    try:
        yield
    except ValueError as error:
        # Our own errors are ValueErrors of one line.
        if type(error).__module__.partition(".")[0] == "entropylong_assets":
            raise dg.Failure(str(error), allow_retries=False) from None
        raise dg.Failure(_line(error), allow_retries=False) from error
    except Exception as error:
        told = disk_trouble(error)
        if told:
            raise dg.Failure(told, allow_retries=is_transient(error)) from error
        if is_transient(error):
            raise
        raise dg.Failure(_line(error), allow_retries=False) from error


def disk_trouble(error: Exception) -> str | None:
    """What to do where the system refused to write; LanceDB tells of it in words alone."""
    line = " ".join(str(error).split())
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in line:
        return f"no space left on the disk: {line}; free some, or name another data_uri"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in line:
        return (
            f"no permission to write: {line}; give it to the user of this process, or name "
            f"another data_uri"
        )
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
