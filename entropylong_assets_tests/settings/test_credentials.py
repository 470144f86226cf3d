"""Credentials are recognized in URIs, and removed from messages."""

from __future__ import annotations

import pytest

from entropylong_assets.settings.credentials import holds_credentials, without_credentials


@pytest.mark.parametrize(
    ("uri", "holds"),
    [
        ("s3://AKIAKEY:sEcReT@bucket/run", True),
        ("s3a://AKIAKEY:sEcReT@bucket/run", True),
        ("s3://AKIAKEY:sEc/ReT@bucket/run", True),  # a secret key may contain a slash
        ("s3://AKIAKEY@bucket/run", True),
        ("gs://key@bucket", True),
        ("gcs://key@bucket?x", True),
        ("https://user:sEcReT@host/a.zip", True),
        ("sftp://user:sEcReT@host/run", True),
        ("zip://*.jsonl::https://user:sEcReT@host/a.zip", True),
        ("simplecache::s3://AKIAKEY:sEcReT@bucket", True),
        ("s3://bucket/run", False),
        ("s3://bucket/a@b:c/run", False),
        ("sftp://user@host/run", False),
        ("abfs://container@account.dfs.core.windows.net/run", False),
        ("hf://datasets/me/x@main/**", False),
        ("https://host/a?b=c:d@e", False),
        ("https://host#a:b@c", False),
        ("/data/a:b@c", False),
        ("data/lab", False),
        ("", False),
    ],
)
def test_holds_credentials_finds_passwords_and_keys(uri: str, holds: bool) -> None:
    assert holds_credentials(uri) == holds


@pytest.mark.parametrize(
    "name",
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "DAGSTER_PG_PASSWORD",
    ],
)
def test_without_credentials_replaces_each_secret_of_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "sEc/ReT+1")
    shown = without_credentials("key=sEc/ReT+1; again sEc/ReT+1.")
    assert shown == f"key=<{name}>; again <{name}>."


def test_without_credentials_leaves_short_values_and_other_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values such as `test` occur in ordinary paths."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert without_credentials("s3://test/lab: tested") == "s3://test/lab: tested"
