"""An S3 server (moto's, in its own process), and a proxy in front of it that injects faults.

The faults are typical of object storage. A seeded draw decides whether a request meets one; it then
meets the kind that was injected least often so far, so that every kind occurs:

    500, 503     an error instead of the answer; the request is not executed
    reset        the connection is closed without an answer
    slow, stuck  the answer is late; later than the client's timeout
    cut          the connection is closed in the middle of the body
    short        the body and its Content-Length are truncated: only a range or a checksum shows it
    unconfirmed  the request is executed, but the answer is an error
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import aiohttp
import boto3
from aiohttp import web
from yarl import URL

SLOW_SECONDS = 0.2

KEY_ID, SECRET = "AKIAENTROPYLONGTEST0", "vErY/SeCrEt+kEy-0f-ThE-tEsTs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server without any bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, "moto's server has ended"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def environment(url: str) -> dict[str, str]:
    """The environment variables that a user sets to access a store."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": url,
    }


class Bucket:
    """A new bucket, accessed through boto3 only, without code of this package."""

    def __init__(self, url: str, name: str) -> None:
        self.name, self.uri = name, f"s3://{name}"
        self._client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="eu-central-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        self._client.create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def list(self, prefix: str = "") -> tuple[str, ...]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return tuple(item["Key"] for page in pages for item in page.get("Contents", []))


def _error(status: int) -> web.Response:
    code = {500: "InternalError", 503: "SlowDown"}[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>try again</Message></Error>"
    return web.Response(status=status, text=body, content_type="application/xml")


class Proxy:
    """Injects faults, counted by client (`lancedb`, or `tables` for all others) and kind.

    share: share of requests that meet a fault, per client. stuck_seconds: delay of a stuck answer;
    each client gets one.
    """

    def __init__(
        self, upstream: str, seed: int, share: dict[str, float], stuck_seconds: float
    ) -> None:
        self.upstream, self.share, self.stuck_seconds = upstream, share, stuck_seconds
        self.injected: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[str] = Counter()
        self.unmet: dict[tuple[str, str], str] = {}
        """Requests, by method and path, that met a fault and have not been answered since."""
        self.planned: list[tuple[str, str, str]] = []
        """(method, end of the path, kind) of faults that are injected once, whatever the share."""
        self._draw = {client: random.Random(f"{seed}:{client}") for client in share}
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # moto checks and writes in two steps; a store with conditional puts does both in one.
        self._conditional = asyncio.Lock()
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            self._ready.set()
            await self._stopped.wait()
            await runner.cleanup()

    def _fault(self, client: str, request: web.Request) -> str | None:
        for plan in self.planned:
            if request.method == plan[0] and request.path.endswith(plan[1]):
                self.planned.remove(plan)
                self.injected[client, plan[2]] += 1
                return plan[2]
        draw = self._draw[client]
        if draw.random() >= self.share[client]:
            return None
        kinds = ["500", "503", "reset", "slow"]
        is_object = request.path.count("/") > 1
        if self.injected[client, "stuck"] < 1:
            kinds.append("stuck")
        if request.method == "GET" and is_object:
            kinds += ["cut", "short"] if client == "tables" else ["cut"]
        if request.method in ("PUT", "POST", "DELETE"):
            kinds.append("unconfirmed")
        kind = min(draw.sample(kinds, len(kinds)), key=lambda kind: self.injected[client, kind])
        self.injected[client, kind] += 1
        return kind

    async def _forward(
        self, request: web.Request, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        unsent = {"Host", "Expect", "Connection", "Transfer-Encoding"}
        headers = {name: value for name, value in request.headers.items() if name not in unsent}
        url = URL(self.upstream + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            unkept = {"Connection", "Transfer-Encoding", "Date", "Server"}
            kept = {name: value for name, value in answer.headers.items() if name not in unkept}
            return answer.status, kept, await answer.read()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        client = "lancedb" if "lancedb" in request.raw_path else "tables"
        self.requests[client] += 1
        body = await request.read()
        fault = self._fault(client, request)
        name = (request.method, request.path)
        if fault and fault != "slow":
            self.unmet[name] = fault
        if fault in ("500", "503"):
            return _error(int(fault))
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault in ("slow", "stuck"):
            await asyncio.sleep(self.stuck_seconds if fault == "stuck" else SLOW_SECONDS)
        conditional = "If-None-Match" in request.headers
        async with self._conditional if conditional else contextlib.nullcontext():
            status, headers, content = await self._forward(request, body)
        if fault == "unconfirmed":
            return _error(500)
        if fault == "short":
            content = content[: len(content) // 2]
            headers["Content-Length"] = str(len(content))
        if request.transport is None or request.transport.is_closing():  # the client gave up
            return web.Response()
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if fault == "cut":
            await response.write(content[: len(content) // 2])
            request.transport.close()
            return response
        # The status of an error suffices: clients do not request the rest of its body.
        if fault in (None, "slow") or (fault == "short" and status >= 400):
            self.unmet.pop(name, None)
        if request.method != "HEAD":
            await response.write(content)
        await response.write_eof()
        return response
