"""Serving reports and exports to a browser over loopback, since Dagster's UI can't open files.

It serves the pages of reports and the files that the manifests of exports list. Any other path is
not found, so that nothing else on the disk or in the bucket can be read.

    /                                      links to all of it
    /<dataset>/report.html                 the report that `entropylong report` wrote
    /<dataset>/reports/<version>.html      reports of exports
    /<dataset>/exports/<version>/<file>    files of exports
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.training_data.destination import destination_of
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.publication import MANIFEST
from entropylong_assets.stages.training_data.verify import read_manifest
from entropylong_assets.storage.object_storage import open_uri

HOST, PORT = "127.0.0.1", 3080
_TYPES = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "md": "text/plain; charset=utf-8",
}
# The index page loads nothing. A report has a stricter policy in its own head.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_PLAIN = "default-src 'none'; style-src 'unsafe-inline'"


class ServeError(ValueError):
    """The pages can't be served. The message is one line that says what to do."""


@dataclass(frozen=True)
class ServedFile:
    """A file that may be read: its file system, and its path on it."""

    fs: Any
    path: str


def url_of(dataset: str, path: str, port: int = PORT) -> str:
    """Return the URL of a file in a dataset's folder while `entropylong serve` runs."""
    return f"http://{HOST}:{port}/{quote(f'{dataset}/{path}')}"


def _names(fs: Any, folder: str) -> list[str]:
    try:
        return sorted(path.rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []


def _files_of(settings: Settings) -> Iterator[tuple[str, ServedFile]]:
    """Yield the paths below the dataset's name, with their files."""
    fs, root = open_uri(f"{settings.data_uri}/{settings.name}")
    if fs.exists(f"{root}/report.html"):
        yield "report.html", ServedFile(fs, f"{root}/report.html")
    for name in _names(fs, f"{root}/reports"):
        if name.endswith(".html"):
            yield f"reports/{name}", ServedFile(fs, f"{root}/reports/{name}")
    destination = destination_of(settings).rstrip("/")
    fs, root = open_uri(destination)
    for version in _names(fs, root):
        try:
            manifest = read_manifest(f"{destination}/{version}")
        except ExportError:  # a folder that is being written, or not an export
            continue
        for name in [MANIFEST, *(file["path"] for file in manifest["files"])]:
            if ".." not in name.split("/"):
                yield f"exports/{version}/{name}", ServedFile(fs, f"{root}/{version}/{name}")


def served_files(datasets: Mapping[str, Settings]) -> dict[str, ServedFile]:
    """Return every file that is served now, by its path in the URL without the first slash."""
    return {
        f"{name}/{path}": file
        for name, settings in datasets.items()
        for path, file in _files_of(settings)
    }


def find_file(datasets: Mapping[str, Settings], path: str) -> ServedFile | None:
    """Return the file at a path of the URL, without its first slash; None if it is not served.

    A page of a report is found without reading the manifests of exports.
    """
    name, _, rest = path.partition("/")
    if name not in datasets:
        return None
    return next((file for known, file in _files_of(datasets[name]) if known == rest), None)


def index_page(datasets: Mapping[str, Settings], files: Mapping[str, ServedFile]) -> str:
    """Return the page of links, reports before exports."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>EntropyLong</title>",
        "<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "li{overflow-wrap:anywhere}</style><h1>EntropyLong: reports and exports</h1>",
    ]
    for name in datasets:
        own = [path for path in files if path.startswith(f"{name}/")]
        links = "".join(
            f"<li><a href='/{quote(path)}'>{html.escape(path.partition('/')[2])}</a></li>"
            for path in own
        )
        parts.append(f"<h2>dataset {html.escape(name)}</h2><ul>{links or '<li>nothing yet'}</ul>")
    return "".join(parts)


def make_server(datasets: Mapping[str, Settings], port: int = PORT) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1 that is not yet running.

    port: 0 for any free one. Raises ServeError if the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                self._answer()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the browser has closed the page
            except OSError as error:
                self.send_error(HTTPStatus.BAD_GATEWAY, f"the store can't be read: {error}"[:200])

        def _answer(self) -> None:
            if not self._is_for_us():
                self.send_error(
                    HTTPStatus.FORBIDDEN, "this server answers only to its loopback name"
                )
                return
            path = unquote(urlsplit(self.path).path).lstrip("/")
            if not path:
                self._send_page(index_page(datasets, served_files(datasets)).encode())
            elif file := find_file(datasets, path):
                self._send_file(file)
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "no such report or export")

        def _is_for_us(self) -> bool:
            """Whether the request names this host: another name may resolve to this address too."""
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            return host in (HOST, "localhost")

        def _head(self, kind: str, length: int, more: Mapping[str, str] = {}) -> None:
            self.send_response(HTTPStatus.OK)
            headers = {"Content-Type": kind, "Content-Length": str(length)}
            for name, value in (headers | _HEADERS | dict(more)).items():
                self.send_header(name, value)
            self.end_headers()

        def _send_page(self, content: bytes) -> None:
            self._head(_TYPES["html"], len(content), {"Content-Security-Policy": _PLAIN})
            self.wfile.write(content)

        def _send_file(self, file: ServedFile) -> None:
            kind = _TYPES.get(file.path.rpartition(".")[2], "application/octet-stream")
            written = format_datetime(file.fs.modified(file.path), usegmt=True)
            with file.fs.open(file.path, "rb") as stream:
                self._head(kind, file.fs.size(file.path), {"Last-Modified": written})
                shutil.copyfileobj(stream, self.wfile)

        def log_message(self, *_: object) -> None:
            """Print nothing per request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise ServeError(
            f"port {port} of {HOST}: {error.strerror}; name another with --port"
        ) from None
