"""Counts and choices of the report, against counts made here row by row."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.report import details
from entropylong_assets.report.charts import all_charts
from entropylong_assets.report.details import (
    choose_roots,
    choose_samples,
    root_details,
    sample_details,
)
from entropylong_assets.report.distributions import distributions, open_tables
from entropylong_assets.report.funnel import funnel
from entropylong_assets.report.page import page, render
from entropylong_assets.report.run import open_run
from entropylong_assets.report.text import visible
from entropylong_assets.storage.tables import TableError, TableStore
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_run,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    return write_run(run_settings(tmp_path_factory.mktemp("run")))


def rows_of(store: TableStore, asset: str, table: str) -> list[dict[str, Any]]:
    return [row for shard in SHARDS for row in store.read(asset, shard, table).to_dicts()]


def test_every_loss_has_its_reason_and_number(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        steps = {(step.unit, step.name): step for step in funnel(session)}
    pairs = rows_of(store, "verified_dependencies", "pairs")
    roots = rows_of(store, "entropy_scores", "roots")
    verdicts = Counter(pair["verdict"] for pair in pairs)
    assert all(step.unexplained == 0 for step in steps.values())
    assert all(n > 0 for step in steps.values() for n in step.lost.values())
    assert steps["rows", "read"].lost == {"too_short": 2}
    assert steps["roots", "scored"].lost == {"too_long_for_model": 2}
    high = [sum((h or 0) > 5 for h in root["entropies"]) for root in roots]
    anchors = sum(len(root["anchors"]) for root in roots)
    assert steps["positions", "anchors"].stayed == anchors
    assert steps["positions", "anchors"].lost["above τ, but at the cold start"] == (
        sum(high) - anchors
    )
    assert steps["pairs", "scored"].lost == {"near_duplicate": verdicts["near_duplicate"]}
    failed = {v: n for v, n in verdicts.items() if v not in ("near_duplicate", "accepted")}
    assert steps["pairs", "accepted"].lost == failed
    assert len(failed) == 2, "the run has every kind of failure"
    resolved = {(p["root_id"], p["anchor"]) for p in pairs if p["accepted"]}
    assert steps["anchors", "resolved"].stayed == len(resolved) < anchors
    packed = rows_of(store, "long_context_samples", "dependencies")
    assert steps["dependencies", "packed"].stayed == len(packed)
    assert steps["dependencies", "packed"].came == verdicts["accepted"]


def test_what_disappears_without_a_reason_is_shown(tmp_path: Path) -> None:
    store = write_run(run_settings(tmp_path))
    asset = "verified_dependencies"
    tables = {t: store.read(asset, SHARDS[0], t) for t in ("pairs", "contexts", "controls")}
    with store.write(asset, SHARDS[0], fingerprint="t") as writer:
        for name, frame in tables.items():
            lost = frame["anchor"].min() if name == "pairs" else None
            writer.append(name, frame if lost is None else frame.filter(frame["anchor"] != lost))
    with open_tables(store, SHARDS) as session:
        unexplained = {(s.unit, s.name): s.unexplained for s in funnel(session) if s.unexplained}
    assert unexplained[("anchors", "with candidates")] == 1


def test_histograms_count_every_value_once(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        found = distributions(session)
    roots = rows_of(store, "entropy_scores", "roots")
    pairs = rows_of(store, "verified_dependencies", "pairs")
    controls = rows_of(store, "verified_dependencies", "controls")
    entropies = [h for root in roots for h in root["entropies"] if h is not None]
    assert sum(b["above"] + b["below"] for b in found["entropies"]) == len(entropies)
    for row in found["entropies"][3:6]:
        inside = sum(row["low"] <= h < row["high"] for h in entropies)
        assert row["above"] + row["below"] == pytest.approx(inside, abs=1)

    gains = {name: [p[name] for p in pairs if p[name] is not None] for name in _GAINS}
    for name, series in _GAINS.items():
        rows = [row for row in found["gains"] if row["series"] == series]
        assert sum(row["pairs"] for row in rows) == len(gains[name]) > 20
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        for row in rows[1:-1]:
            inside = sum(row["low"] - 1e-9 <= g < row["high"] - 1e-9 for g in gains[name])
            assert row["pairs"] == inside
    by_root = {root["root_id"]: root["entropies"] for root in roots}
    random = [
        (by_root[c["root_id"]][c["anchor"]] - c["entropy"]) / by_root[c["root_id"]][c["anchor"]]
        for c in controls
    ]
    shown = [row for row in found["gains"] if row["series"] == "random, ΔI"]
    assert sum(row["pairs"] for row in shown) == len(random)
    chance = sum(row["pairs"] for row in shown if row["low"] >= 0.4 - 1e-9)
    assert chance == sum(g >= 0.4 for g in random) > 0

    distances = [d["distance"] for d in rows_of(store, "long_context_samples", "dependencies")]
    expected = Counter(2.0 ** math.floor(math.log2(d)) for d in distances)
    assert {row["low"]: row["dependencies"] for row in found["distances"]} == expected

    for name, width in (("rank", 1), ("similarity", 0.05)):
        key = "rank" if name == "rank" else "similarity"
        for row in found[name]:
            inside = [p for p in pairs if p["gain"] is not None and row["low"] <= p[key]]
            inside = [p for p in inside if p[key] < row["low"] + width]
            assert row["scored"] == len(inside)
            assert row["accepted"] == sum(p["accepted"] for p in inside)
            assert row["share_low"] <= row["share"] <= row["share_high"]
        assert sum(row["scored"] for row in found[name]) == len(gains["gain"])
    assert sum(row["pairs"] for row in found["changes"]) == len(gains["gain"])
    accepted = sum(row["pairs"] for row in found["changes"] if row["accepted"])
    assert accepted == sum(p["accepted"] for p in pairs) > 0


_GAINS = {"gain": "retrieved, ΔI", "calibrated_gain": "retrieved, ΔI*"}


def test_roots_shown_are_those_with_most_contexts_and_a_draw(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session, 6)
    accepted = Counter(
        p["root_id"] for p in rows_of(store, "verified_dependencies", "pairs") if p["accepted"]
    )
    every = [root["root_id"] for root in rows_of(store, "entropy_scores", "roots")]
    most = sorted(every, key=lambda r: (-accepted[r], r))[:3]
    drawn = sorted(set(every) - set(most))[:3]
    assert chosen == dict.fromkeys(most, "most") | dict.fromkeys(drawn, "drawn")


def test_a_root_is_shown_with_all_that_was_measured(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session) | {"0" * 32: "of another run"}
        shown, passages = root_details(session, chosen, byte_tokenizer())
    assert len(shown) == len(chosen) - 1
    pairs = rows_of(store, "verified_dependencies", "pairs")
    texts = {d["doc_id"]: d["text"] for d in rows_of(store, "corpus_documents", "documents")}
    for root in shown:
        assert "".join(root["tokens"]) == visible(texts[root["id"]])
        assert len(root["tokens"]) == len(root["entropies"]) == len(root["surprisals"])
        for anchor in root["anchors"]:
            own = [p for p in pairs if (p["root_id"], p["anchor"]) == (root["id"], anchor["t"])]
            assert [c["chunk_id"] for c in anchor["candidates"]] == [p["chunk_id"] for p in own]
            assert [c["verdict"] for c in anchor["candidates"]] == [p["verdict"] for p in own]
            assert (anchor["state"] == "resolved") == any(p["accepted"] for p in own)
            assert all(c["chunk_id"] in passages for c in anchor["candidates"])


def test_a_sample_is_shown_with_all_its_segments(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_samples(session)
        samples = sample_details(session, store, chosen, byte_tokenizer())
    assert samples
    segments = rows_of(store, "long_context_samples", "segments")
    for sample in samples:
        own = [s for s in segments if s["sample_id"] == sample["id"]]
        assert [s["start"] for s in sample["segments"]] == [s["start"] for s in own]
        assert sum(sample["roles"].values()) == sample["n_tokens"] == 2400
        for d in sample["dependencies"]:
            context = next(s for s in own if s["start"] == d["context_start"])
            assert (context["role"], context["chunk_id"]) == ("verified", d["chunk_id"])


def test_the_page_stays_small_however_many_roots_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a report that grows with the data."""
    monkeypatch.setattr(details, "ANCHORS", 2)
    store = write_run(run_settings(tmp_path), roots=30)
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session)
        shown, _ = root_details(session, chosen, byte_tokenizer())
        samples = choose_samples(session)
    assert len(rows_of(store, "long_context_samples", "samples")) > details.SAMPLES
    assert (len(chosen), len(shown), len(samples)) == (12, 12, 8)
    full = [sum("candidates" in a for a in root["anchors"]) for root in shown]
    assert full == [2] * 12
    first = shown[0]["anchors"]
    assert [a["state"] for a in first if "candidates" in a] == ["resolved"] * 2


def test_charts_of_two_runs_share_their_scales(tmp_path: Path) -> None:
    charts = []
    for number, epsilon in enumerate((0.4, 0.05)):
        settings = run_settings(tmp_path / str(number), verification={"epsilon": epsilon})
        with open_tables(write_run(settings, seed=number), SHARDS) as session:
            charts.append(distributions(session))
    drawn = all_charts(charts, [0.4, 0.05])
    assert len(drawn) == 6

    def domains(node: Any) -> list[Any]:
        if isinstance(node, dict):
            own = [node["domain"]] if "domain" in node else []
            return own + [d for v in node.values() for d in domains(v)]
        return [d for v in node for d in domains(v)] if isinstance(node, list) else []

    for chart in drawn:
        first, second = (domains(spec) for spec in chart["specs"])
        assert first == second
        assert first


def test_a_run_tells_what_it_was_made_with(tmp_path: Path) -> None:
    """The settings come from the tables, not from the settings in force now."""
    write_run(run_settings(tmp_path / "a", verification={"epsilon": 0.11}))
    now = run_settings(tmp_path / "b")
    source = open_run(now, data_uri=str(tmp_path / "a"))
    assert ("ε", "0.11") in source.description
    assert source.settings.verification.epsilon == 0.11
    with pytest.raises(TableError, match="no samples there"):
        open_run(now)


def test_no_text_of_the_corpus_is_markup_in_the_file(store: TableStore) -> None:
    settings = run_settings(Path(store.uri))
    html = render([open_run(settings)], byte_tokenizer)
    assert html == render([open_run(settings)], byte_tokenizer), "equal inputs, equal bytes"
    start = html.index('id="data">') + len('id="data">')
    data = html[start : html.index("</script>", start)]
    assert not set(data) & set("<>&\x1b\u202e\u2028")
    assert "hacked" in data
    assert "hacked" not in html[:start] + html[start + len(data) :]
    assert json.loads(data)["runs"][0]["n_samples"] > 0


def test_a_text_that_looks_like_a_placeholder_is_not_filled_in() -> None:
    html = page({"runs": [], "charts": [], "proof": [], "how_chosen": "{{script}} {{policy}}"})
    assert '"{{script}} {{policy}}"' in html
