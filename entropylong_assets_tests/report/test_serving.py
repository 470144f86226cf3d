"""Reports and exports over loopback: what is served, and that nothing else is."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from entropylong_assets.report.serving import ServeError, make_server, url_of
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.training_data.manifest import FORMAT_VERSION, encode_manifest
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets_tests.report.runs import run_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A dataset with a report, an export and a secret beside them."""
    settings = run_settings(tmp_path / "data")
    folder = tmp_path / "data" / "dataset"
    (folder / "reports").mkdir(parents=True)
    (folder / "reports" / "a1.html").write_text("<p>report</p>")
    (folder / "record.json").write_text("secret")
    with Publication(f"{folder}/exports", "a1") as publication:
        with publication.file("train/part-0.jsonl") as file:
            file.write(b"{}\n")
        listed = [{"path": file.path, "bytes": file.bytes} for file in publication.files]
        listed.append({"path": "../../record.json", "bytes": 6})
        publication.publish(encode_manifest({"format_version": FORMAT_VERSION, "files": listed}))
    (folder / "exports" / "a1" / "unlisted.txt").write_text("secret")
    return settings


@pytest.fixture
def server(settings: Settings) -> Iterator[ThreadingHTTPServer]:
    server = make_server({"dataset": settings}, port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(
    server: ThreadingHTTPServer, path: str, host: str | None = None
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_report_and_export_are_served_with_their_dates(
    server: ThreadingHTTPServer, settings: Settings
) -> None:
    status, headers, body = get(server, "/dataset/reports/a1.html")
    assert (status, body) == (200, "<p>report</p>")
    assert headers["Content-Type"].startswith("text/html")
    page = Path(settings.data_uri) / "dataset/reports/a1.html"
    written = parsedate_to_datetime(headers["Last-Modified"]).timestamp()
    assert written == pytest.approx(page.stat().st_mtime, abs=1.1)
    status, headers, body = get(server, "/dataset/exports/a1/train/part-0.jsonl")
    assert (status, body) == (200, "{}\n")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_index_links_to_everything(server: ThreadingHTTPServer) -> None:
    status, _, body = get(server, "/")
    assert status == 200
    for path in ("reports/a1.html", "exports/a1/manifest.json", "exports/a1/train/part-0.jsonl"):
        assert f"href='/dataset/{path}'" in body
    assert "unlisted" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/dataset/record.json",
        "/dataset/exports/a1/unlisted.txt",
        "/dataset/reports/../record.json",
        "/dataset/exports/a1/../../record.json",
        "/dataset/reports/%2e%2e/record.json",
        "/dataset/exports/a1/..%2f..%2frecord.json",
        "//etc/passwd",
        "/etc/passwd",
        "/other/reports/a1.html",
    ],
)
def test_nothing_else_is_served(server: ThreadingHTTPServer, path: str) -> None:
    status, _, body = get(server, path)
    assert status == 404
    assert "secret" not in body


def test_a_foreign_name_for_this_host_is_refused(server: ThreadingHTTPServer) -> None:
    """A page elsewhere could let its own name point at 127.0.0.1, and read the answers."""
    assert get(server, "/dataset/reports/a1.html", f"evil.example:{server.server_port}")[0] == 403
    assert get(server, "/dataset/reports/a1.html", f"localhost:{server.server_port}")[0] == 200


def test_the_server_is_not_reachable_from_other_hosts(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_an_error_of_one_line(
    server: ThreadingHTTPServer, settings: Settings
) -> None:
    with pytest.raises(ServeError, match=r"port \d+ of 127.0.0.1: .*; name another with --port$"):
        make_server({"dataset": settings}, port=server.server_port)


def test_url_of_is_one_that_dagster_opens() -> None:
    assert url_of("dataset", "reports/a1.html") == ("http://127.0.0.1:3080/dataset/reports/a1.html")
