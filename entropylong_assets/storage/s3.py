"""s3fs with what a pipeline needs beyond its defaults. Registered by `object_storage`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import s3fs
from botocore.exceptions import FlexibleChecksumError, NoCredentialsError
from urllib3.exceptions import IncompleteRead

from entropylong_assets.storage import object_storage
from entropylong_assets.storage.object_storage import StorageError, unless_gone

# A whole object carries a checksum, which botocore verifies as it is read.
s3fs.core.add_retryable_error(FlexibleChecksumError)


BLOCK_BYTES = 8 * 2**20

_RANGE = re.compile(r"bytes (\d+)-(\d+)/\d+")


def _refuse_short_body(answer: Mapping[str, Any]) -> None:
    """Raises IncompleteRead where the body is shorter than the range that the store speaks of.

    aiohttp notices a body that ends before its announced length; this one is about an announced
    length that something on the way has cut, too.
    """
    given = _RANGE.fullmatch(answer.get("ContentRange", ""))
    if given is None:
        return
    expected = int(given[2]) - int(given[1]) + 1
    if answer["ContentLength"] != expected:
        answer["Body"].close()  # the next try opens a connection of its own
        raise IncompleteRead(answer["ContentLength"], expected - answer["ContentLength"])


class S3(s3fs.S3FileSystem):
    """`s3://` with credentials and endpoint from the environment, and patient with faults."""

    # s3fs tries again what botocore has given up, and reading tries that again. Once more is
    # enough for a body that was cut short; botocore does not look at bodies.
    retries = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config: dict[str, Any] = {
            "connect_timeout": object_storage.CONNECT_SECONDS,
            "read_timeout": object_storage.ANSWER_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": object_storage.ATTEMPTS},
        }
        ours: dict[str, Any] = {
            # A remembered listing would hide what other processes have written meanwhile.
            "use_listings_cache": False,
            "client_kwargs": {"region_name": object_storage.region()},
            # Read ahead at every seek: the default of 50 MB would be most of a table.
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
            # Under another name, so that a reader that tries again does not multiply the tries.
            raise ConnectionError(f"s3://{kwargs.get('Bucket', '')}: {error}") from error
        except PermissionError as error:
            where = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
            raise PermissionError(
                f"{where}: {error}; the credentials in the environment need the right to it, and "
                "to be renewed where they have expired"
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
                f"s3://{kwargs.get('Bucket', '')}: there is no such bucket; make it, or correct "
                "the URI, AWS_REGION or AWS_ENDPOINT_URL"
            ) from None
        if method == "get_object":
            _refuse_short_body(answer)
        return answer

    async def _walk(
        self, path: str, *args: Any, on_error: Any = unless_gone, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Raises what a listing raises. It comes by here at every level, and does not hand
        `on_error` down."""
        async for step in super()._walk(path, *args, on_error=on_error, **kwargs):
            yield step

    async def _cat_file(
        self, path: str, *args: Any, max_concurrency: int = 1, **kwargs: Any
    ) -> bytes:
        """An object in one request, which is made again as a whole if its body is cut short;
        without asking for the size before, as s3fs does to read in several parts."""
        content: bytes = await super()._cat_file(
            path, *args, max_concurrency=max_concurrency, **kwargs
        )
        return content

    def _open(self, path: str, *args: Any, size: int | None = None, **kwargs: Any) -> Any:
        """A file whose size is given is not looked at before its first byte is asked for."""
        file = super()._open(path, *args, size=size, **kwargs)
        if size is not None:
            file.details = {"name": path, "size": size, "type": "file"}
        return file

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: there are no folders here, and a bucket that is missing is a mistake."""

    makedirs = s3fs.core.sync_wrapper(_makedirs)
