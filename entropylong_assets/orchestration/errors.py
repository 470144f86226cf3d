"""Which errors end a step at once, and which are retried.

A transient fault (network, a full device, a conflict of two writers) is retried with growing
pauses. Bad input, a wrong setting or a bug in our code would fail the same way again.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from entropylong_assets.orchestration.signals import (
    announce_stop,
    stop_if_asked,
    stop_signal,
    watch_signals,
)
from entropylong_assets.settings.credentials import without_credentials

RETRIES = dg.RetryPolicy(
    max_retries=3, delay=15, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""Retries after about 15, 45 and 105 seconds; only errors that `plain_errors` allows."""

EQUAL_FAILURES = 3
"""Number of shards in a row that fail for the same reason before the others are left."""

# Errors of the operating system that the same request would raise again.
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
        "ClientPayloadError",  # a body cut short
        "ServerTimeoutError",
        "HTTPError",
        "HfHubHTTPError",
        "HTTPClientError",  # botocore: no connection, no answer in time
        "ResponseParserError",
        "FlexibleChecksumError",
        "IncompleteRead",  # urllib3, under s3fs
        "FSTimeoutError",  # fsspec
    }
)

# LanceDB reports a lost race of two writers, and faults of its store, as plain
# RuntimeError, OSError or ValueError.
_TRANSIENT_WORDS = (
    "no space left",
    "commit conflict",
    "concurrent commit",
    "too many concurrent",
    "generic s3 error",
    "retryerror",
)


def is_transient(error: BaseException) -> bool:
    """Whether the same step is likely to succeed if it is retried within minutes."""
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, ConnectionError | TimeoutError | OSError):
        return True
    if _TRANSIENT_NAMES & {cls.__name__ for cls in type(error).__mro__}:
        return True
    return any(words in str(error).lower() for words in _TRANSIENT_WORDS)


def is_ours(error: BaseException) -> bool:
    """Whether it is one of our own errors: a ValueError of one line that says what to do."""
    ours = type(error).__module__.partition(".")[0] == "entropylong_assets"
    return ours and isinstance(error, ValueError)


def line(error: BaseException) -> str:
    """Return the error as one line for users, without the credentials of the environment."""
    if is_ours(error):
        message = str(error)
    else:
        message = disk_trouble(error) or f"{type(error).__name__}: {error}"
    return without_credentials(" ".join(message.split()))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise dg.Failure with one line in place of any error of a step.

    Dagster retries the step only if the fault is transient. An error that is not our own is the
    cause of the failure, so that its traceback is shown, unless it contains credentials.
    """
    try:
        yield
    except Exception as error:
        # A traceback would show the messages of all causes.
        messages = "".join(str(link) for link in _chain(error))
        shows_credentials = without_credentials(messages) != messages
        cause = None if is_ours(error) or shows_credentials else error
        again = not is_ours(error) and is_transient(error)
        raise dg.Failure(line(error), allow_retries=again) from cause


class StopRequestedError(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """A step was asked to stop.

    Dagster retries an interrupted step that has a retry policy (dagster#15026), but never one that
    raised a DagsterError. It cancels the run only for an interruption. So this class is both.
    """


@contextmanager
def step_errors() -> Iterator[None]:
    """`plain_errors` around the work of a step; a request to stop ends the step for good.

    Raises StopRequestedError if this process was asked to stop, whichever error the work raised.
    """
    with watch_signals():
        try:
            stop_if_asked()
            with plain_errors():
                yield
        except (Exception, KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            number = stop_signal()
            if number is None and isinstance(error, Exception):
                raise
            announce_stop()
            by = f" by {number.name}" if number else ""
            raise StopRequestedError(
                f"Stopped{by}. Nothing of this step was published; run it again to resume."
            ) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, as a traceback shows them."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        link = waiting.pop()
        if link is not None and link not in seen:
            seen.append(link)
            yield link
            waiting += [link.__cause__, link.__context__]


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def disk_trouble(error: BaseException) -> str | None:
    """What to do about a full disk or missing permission; LanceDB reports both in words only."""
    line = " ".join(str(error).split())
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in line:
        return (
            f"no space left on the disk: {line}; free some, or set another data_uri (for temporary "
            f"files: another TMPDIR, now {tempfile.gettempdir()})"
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in line:
        return (
            f"no permission: {line}; grant it to the user of this process, or name another place "
            f"in the settings"
        )
    return None
