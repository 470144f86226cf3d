"""An s3fs file system for long unattended runs. `object_storage.open_uri` uses it for `s3://`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import s3fs
from botocore.exceptions import FlexibleChecksumError, NoCredentialsError
from urllib3.exceptions import IncompleteRead

from entropylong_assets.storage import object_storage
from entropylong_assets.storage.object_storage import StorageError, raise_unless_missing

# A whole object has a checksum, which botocore verifies while reading.
s3fs.core.add_retryable_error(FlexibleChecksumError)

BLOCK_BYTES = 8 * 2**20
"""Bytes read ahead at every seek. The default of s3fs, 50 MB, would be most of a table."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/\d+")


def _refuse_short_body(answer: Mapping[str, Any]) -> None:
    """Raise IncompleteRead if the body is shorter than the range that the store says it returns.

    aiohttp detects a body that is shorter than its Content-Length. This function also detects a
    body that was truncated on the way together with its Content-Length.
    """
    content_range = _RANGE.fullmatch(answer.get("ContentRange", ""))
    if content_range is None:
        return
    expected = int(content_range[2]) - int(content_range[1]) + 1
    if answer["ContentLength"] != expected:
        answer["Body"].close()  # the next attempt opens a new connection
        raise IncompleteRead(answer["ContentLength"], expected - answer["ContentLength"])


class S3(s3fs.S3FileSystem):
    """`s3://`, with credentials and endpoint from the environment, and with retries."""

    # s3fs retries requests that botocore gave up, and its files retry those again. Two attempts
    # suffice for a truncated body, the one fault that botocore does not retry.
    retries = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config: dict[str, Any] = {
            "connect_timeout": object_storage.CONNECT_SECONDS,
            "read_timeout": object_storage.ANSWER_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": object_storage.ATTEMPTS},
        }
        ours: dict[str, Any] = {
            # A cached listing would hide what other processes have written since.
            "use_listings_cache": False,
            "client_kwargs": {"region_name": object_storage.region()},
            "default_block_size": BLOCK_BYTES,
        }
        if url := object_storage.endpoint():
            ours["endpoint_url"] = url
            config["s3"] = {"addressing_style": "path"}  # as LanceDB does for such a store
        super().__init__(*args, **(ours | {"config_kwargs": config} | kwargs))

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = await super()._call_s3(method, *args, **kwargs)
        except s3fs.core.S3_RETRYABLE_ERRORS as error:
            # As another class, so that a file that retries does not multiply the attempts.
            raise ConnectionError(f"s3://{kwargs.get('Bucket', '')}: {error}") from error
        except PermissionError as error:
            where = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
            raise PermissionError(
                f"{where}: {error}; grant this permission to the credentials in the environment, "
                "or renew them if they have expired"
            ) from None
        except NoCredentialsError:
            raise StorageError(
                f"s3://{kwargs.get('Bucket', '')}: no credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment"
            ) from None
        except FileNotFoundError as error:
            if "bucket does not exist" not in str(error):
                raise
            raise StorageError(
                f"s3://{kwargs.get('Bucket', '')}: the bucket does not exist; create it, or "
                "correct the URI, AWS_REGION or AWS_ENDPOINT_URL"
            ) from None
        if method == "get_object":
            _refuse_short_body(answer)
        return answer

    async def _walk(
        self, path: str, *args: Any, on_error: Any = raise_unless_missing, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Walk a folder. Errors of a listing are raised unless the folder is missing."""
        # s3fs calls this method at every level, without passing on `on_error`.
        async for step in super()._walk(path, *args, on_error=on_error, **kwargs):
            yield step

    async def _cat_file(
        self, path: str, *args: Any, max_concurrency: int = 1, **kwargs: Any
    ) -> bytes:
        """Read an object in one request, which is repeated if the body is truncated.

        By default s3fs first requests the size, in order to read several parts at once.
        """
        content: bytes = await super()._cat_file(
            path, *args, max_concurrency=max_concurrency, **kwargs
        )
        return content

    def _open(self, path: str, *args: Any, size: int | None = None, **kwargs: Any) -> Any:
        """Open a file. If its size is given, no request is sent until it is read."""
        file = super()._open(path, *args, size=size, **kwargs)
        if size is not None:
            file.details = {"name": path, "size": size, "type": "file"}
        return file

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: S3 has no folders, and a missing bucket must not be created silently."""

    makedirs = s3fs.core.sync_wrapper(_makedirs)
