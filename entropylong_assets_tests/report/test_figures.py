"""Counts and choices of the report, against counts made here row by row."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.report import details
from entropylong_assets.report import page as page_module
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
from entropylong_assets.report.run import open_dataset
from entropylong_assets.report.show import show_sample
from entropylong_assets.report.text import visible
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.registry import GainLimit
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_run,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    return write_run(run_settings(tmp_path_factory.mktemp("run")))


def rows_of(store: TableStore, tables: TableSet[Any], table: str) -> list[dict[str, Any]]:
    return [row for shard in SHARDS for row in store.read(tables, shard, table).to_dicts()]


def test_funnel_counts_every_drop_under_its_reason(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        steps = {(step.unit, step.name): step for step in funnel(session)}
    pairs = rows_of(store, VERIFIED_DEPENDENCIES, "pairs")
    roots = rows_of(store, ENTROPY_SCORES, "roots")
    verdicts = Counter(pair["verdict"] for pair in pairs)
    assert all(step.unexplained == 0 for step in steps.values())
    assert all(n > 0 for step in steps.values() for n in step.dropped.values())
    assert steps["rows", "read"].dropped == {"too_short": 2}
    drawn = steps["documents", "drawn as roots"]
    assert (drawn.entered, drawn.kept) == (2 * 18, 2 * 6)
    assert drawn.dropped == {"not drawn; can be contexts": 2 * 12}
    assert steps["roots", "scored"].dropped == {"too_long_for_model": 2}
    high = [sum((h or 0) > 5 for h in root["entropies"]) for root in roots]
    anchors = sum(len(root["anchors"]) for root in roots)
    assert steps["positions", "anchors"].kept == anchors
    assert steps["positions", "anchors"].dropped["above τ, but at the cold start"] == (
        sum(high) - anchors
    )
    assert steps["pairs", "scored"].dropped == {"near_duplicate": verdicts["near_duplicate"]}
    rejected = {v: n for v, n in verdicts.items() if v not in ("near_duplicate", "accepted")}
    assert steps["pairs", "accepted"].dropped == rejected
    assert len(rejected) == 2, "the run has every kind of failure"
    resolved = {(p["root_id"], p["anchor"]) for p in pairs if p["accepted"]}
    assert steps["anchors", "resolved"].kept == len(resolved) < anchors
    packed = rows_of(store, LONG_CONTEXT_SAMPLES, "dependencies")
    assert steps["dependencies", "packed"].kept == len(packed)
    assert steps["dependencies", "packed"].entered == verdicts["accepted"]


def test_funnel_shows_what_disappeared_without_a_reason(tmp_path: Path) -> None:
    store = write_run(run_settings(tmp_path))
    tables = VERIFIED_DEPENDENCIES
    frames = {t: store.read(tables, SHARDS[0], t) for t in ("pairs", "contexts", "controls")}
    first = frames["pairs"]["anchor"].min()
    frames["pairs"] = frames["pairs"].filter(frames["pairs"]["anchor"] != first)
    with store.write(tables, SHARDS[0], fingerprint="t") as writer:
        for name, frame in frames.items():
            writer.append(name, frame)
    with open_tables(store, SHARDS) as session:
        unexplained = {(s.unit, s.name): s.unexplained for s in funnel(session) if s.unexplained}
    assert unexplained[("anchors", "with candidates")] == 1


def test_distributions_count_every_value_once(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        counted = distributions(session)
    roots = rows_of(store, ENTROPY_SCORES, "roots")
    pairs = rows_of(store, VERIFIED_DEPENDENCIES, "pairs")
    controls = rows_of(store, VERIFIED_DEPENDENCIES, "controls")
    entropies = [h for root in roots for h in root["entropies"] if h is not None]
    assert sum(b["above"] + b["below"] for b in counted["entropies"]) == len(entropies)
    for row in counted["entropies"][3:6]:
        inside = sum(row["low"] <= h < row["high"] for h in entropies)
        assert row["above"] + row["below"] == pytest.approx(inside, abs=1)

    gains = {name: [p[name] for p in pairs if p[name] is not None] for name in _GAINS}
    for name, series in _GAINS.items():
        rows = [row for row in counted["gains"] if row["series"] == series]
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
    shown = [row for row in counted["gains"] if row["series"] == "random, ΔI"]
    assert sum(row["pairs"] for row in shown) == len(random)
    by_chance = sum(row["pairs"] for row in shown if row["low"] >= 0.4 - 1e-9)
    assert by_chance == sum(g >= 0.4 for g in random) > 0

    distances = [d["distance"] for d in rows_of(store, LONG_CONTEXT_SAMPLES, "dependencies")]
    expected = Counter(2.0 ** math.floor(math.log2(d)) for d in distances)
    assert {row["low"]: row["dependencies"] for row in counted["distances"]} == expected

    for name, width in (("rank", 1), ("similarity", 0.05)):
        key = "rank" if name == "rank" else "similarity"
        for row in counted[name]:
            inside = [p for p in pairs if p["gain"] is not None and row["low"] <= p[key]]
            inside = [p for p in inside if p[key] < row["low"] + width]
            assert row["scored"] == len(inside)
            assert row["accepted"] == sum(p["accepted"] for p in inside)
            assert row["share_low"] <= row["share"] <= row["share_high"]
        assert sum(row["scored"] for row in counted[name]) == len(gains["gain"])
    assert sum(row["pairs"] for row in counted["changes"]) == len(gains["gain"])
    accepted = sum(row["pairs"] for row in counted["changes"] if row["accepted"])
    assert accepted == sum(p["accepted"] for p in pairs) > 0


_GAINS = {"gain": "retrieved, ΔI", "calibrated_gain": "retrieved, ΔI*"}


def test_choose_roots_takes_those_with_most_contexts_and_a_draw(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session, 6)
    pairs = rows_of(store, VERIFIED_DEPENDENCIES, "pairs")
    accepted = Counter(p["root_id"] for p in pairs if p["accepted"])
    genuine = Counter(
        p["root_id"] for p in pairs if p["accepted"] and "genuine" in p["accepted_by"]
    )
    assert 0 < genuine.total() < accepted.total()
    every = [root["root_id"] for root in rows_of(store, ENTROPY_SCORES, "roots")]
    most = sorted(every, key=lambda r: (-genuine[r], -accepted[r], r))[:3]
    drawn = sorted(set(every) - set(most))[:3]
    assert chosen == dict.fromkeys(most, "most") | dict.fromkeys(drawn, "drawn")


def test_root_details_have_every_measurement(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session) | {"0" * 32: "of another dataset"}
        shown, passages = root_details(session, chosen, byte_tokenizer())
    assert len(shown) == len(chosen) - 1
    pairs = rows_of(store, VERIFIED_DEPENDENCIES, "pairs")
    texts = {d["doc_id"]: d["text"] for d in rows_of(store, CORPUS_DOCUMENTS, "documents")}
    for root in shown:
        assert "".join(root["tokens"]) == visible(texts[root["id"]])
        assert len(root["tokens"]) == len(root["entropies"]) == len(root["surprisals"])
        for anchor in root["anchors"]:
            own = [p for p in pairs if (p["root_id"], p["anchor"]) == (root["id"], anchor["t"])]
            assert [c["chunk_id"] for c in anchor["candidates"]] == [p["chunk_id"] for p in own]
            assert [c["verdict"] for c in anchor["candidates"]] == [p["verdict"] for p in own]
            assert (anchor["state"] == "resolved") == any(p["accepted"] for p in own)
            assert all(c["chunk_id"] in passages for c in anchor["candidates"])


def test_sample_details_have_every_segment(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        chosen = choose_samples(session)
        samples = sample_details(session, store, chosen, byte_tokenizer())
    assert samples
    segments = rows_of(store, LONG_CONTEXT_SAMPLES, "segments")
    for sample in samples:
        own = [s for s in segments if s["sample_id"] == sample["id"]]
        assert [s["start"] for s in sample["segments"]] == [s["start"] for s in own]
        assert sum(sample["roles"].values()) == sample["n_tokens"] == 2400
        for d in sample["dependencies"]:
            context = next(s for s in own if s["start"] == d["context_start"])
            assert (context["role"], context["chunk_id"]) == ("verified", d["chunk_id"])
            if d["kind"] is None:
                assert d["evidence"] is None
                continue
            before, span, after = d["evidence"]
            assert span in ("oks passage", "b passage")
            assert context["source"].endswith(span.partition(" ")[0])
            assert (before, after[:1]) == (context["source"][:2], " ")
            assert len(after.encode()) >= details.ANCHOR_TOKENS
    assert any(d["kind"] for sample in samples for d in sample["dependencies"])


def test_details_do_not_grow_with_the_number_of_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report must not grow with the data."""
    monkeypatch.setattr(details, "ANCHORS", 2)
    store = write_run(run_settings(tmp_path), roots=30)
    with open_tables(store, SHARDS) as session:
        chosen = choose_roots(session)
        shown, _ = root_details(session, chosen, byte_tokenizer())
        samples = choose_samples(session)
    assert len(rows_of(store, LONG_CONTEXT_SAMPLES, "samples")) > details.SAMPLES
    assert (len(chosen), len(shown), len(samples)) == (12, 12, 8)
    full = [sum("candidates" in a for a in root["anchors"]) for root in shown]
    assert full == [2] * 12
    first = shown[0]["anchors"]
    assert [a["state"] for a in first if "candidates" in a] == ["resolved"] * 2


def test_charts_of_two_datasets_share_their_scales(tmp_path: Path) -> None:
    charts = []
    for number, epsilon in enumerate((0.4, 0.05)):
        settings = run_settings(tmp_path / str(number), verification={"epsilon": epsilon})
        with open_tables(write_run(settings, seed=number), SHARDS) as session:
            charts.append(distributions(session))
    drawn = all_charts(charts, [GainLimit("ε", 0.4), GainLimit("least ΔI*", 0.05)])
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


def test_open_dataset_reads_what_it_was_made_with(tmp_path: Path) -> None:
    """The settings come from the tables, not from the settings in force now."""
    source_of_web = {"corpus": {"sources": [{"name": "web", "uri": "web/*.jsonl"}]}}
    original = run_settings(
        tmp_path,
        **source_of_web,
        verification={"epsilon": 0.11},
        roots={"min_tokens": 2, "max_tokens": 600, "fraction_by_source": {"web": 0.5}},
    )
    write_run(original)
    source = open_dataset(run_settings(tmp_path, **source_of_web, entropy={"alpha": 9.0}))
    assert ("verification.epsilon", "0.11") in source.description
    assert ("roots.fraction_by_source.web", "0.5") in source.description
    assert ("model", "bytes@1") in source.description
    assert ("index", "index-1") in source.description
    assert source.settings == original
    assert source.recorded["entropy.alpha"] == [original.entropy.alpha]
    with pytest.raises(TableError, match="dataset has no samples; make some with `entropylong"):
        open_dataset(run_settings(tmp_path / "empty"))


def write_again(store: TableStore, shard: str, settings: dict[str, Any]) -> None:
    """Publish the pairs of a shard again, as made with other recorded settings."""
    names = ("pairs", "contexts", "controls")
    frames = {name: store.read(VERIFIED_DEPENDENCIES, shard, name) for name in names}
    determinants = {"settings": settings}
    with store.write(
        VERIFIED_DEPENDENCIES, shard, fingerprint="t", determinants=determinants
    ) as writer:
        for name, frame in frames.items():
            writer.append(name, frame)


def test_open_dataset_describes_every_value_if_shards_differ(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    write_again(write_run(settings), SHARDS[1], {"verification.epsilon": 0.7})
    source = open_dataset(settings)
    assert ("verification.epsilon", "0.4 | 0.7") in source.description
    assert source.settings.verification.epsilon == 0.4


def test_open_dataset_ignores_a_recorded_setting_that_no_longer_exists(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    old = {"verification.forgotten": 3, "verification.epsilon": 0.2}
    write_again(write_run(settings), SHARDS[0], old)
    assert open_dataset(settings).settings.verification.epsilon == 0.2


def test_open_dataset_refuses_a_recorded_value_that_is_not_valid_any_more(tmp_path: Path) -> None:
    """As of a rule whose package is not installed any more."""
    settings = run_settings(tmp_path)
    write_again(write_run(settings), SHARDS[0], {"verification.rule": "uninstalled"})
    message = r"is not valid any more: verification.rule: .*'uninstalled'.*; materialize it again$"
    with pytest.raises(TableError, match=message):
        open_dataset(settings)


def test_no_text_of_the_corpus_is_markup_in_the_page(store: TableStore) -> None:
    settings = run_settings(Path(store.uri))
    html = render([open_dataset(settings)], byte_tokenizer)
    assert html == render([open_dataset(settings)], byte_tokenizer), "equal inputs, equal bytes"
    start = html.index('id="data">') + len('id="data">')
    data = html[start : html.index("</script>", start)]
    assert not set(data) & set("<>&\x1b\u202e\u2028")
    assert "hacked" in data
    assert "hacked" not in html[:start] + html[start + len(data) :]
    assert json.loads(data)["runs"][0]["n_samples"] > 0


def test_page_and_show_explain_padding(tmp_path: Path) -> None:
    settings = run_settings(tmp_path, samples={"tokens": 100_000})
    store = write_run(settings)
    html = render([open_dataset(settings)], byte_tokenizer)
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    (run,) = data["runs"]
    assert run["padding"].startswith(f"{run['roles']['padding']:.1%} of the tokens are padding: ")
    shown = show_sample(store, byte_tokenizer, f"{SHARDS[0]}-00000", 1)
    assert shown.padding is not None
    assert "a sample holds 100,000, but the roots of a shard" in shown.padding


def test_page_does_not_depend_on_the_folder_of_the_data(store: TableStore, tmp_path: Path) -> None:
    """Copied data would have another report: the page once named the folder that it was made in."""
    shutil.copytree(store.uri, tmp_path / "moved")
    pages = [
        render([open_dataset(run_settings(folder))], byte_tokenizer)
        for folder in (Path(store.uri), tmp_path / "moved")
    ]
    assert str(store.uri) not in pages[0]
    assert pages[0] == pages[1]


def test_page_leaves_a_text_that_looks_like_a_placeholder() -> None:
    html = page(
        {
            "title": "",
            "runs": [],
            "overlap": [],
            "charts": [],
            "proof": [],
            "how_chosen": "{{script}} {{policy}}",
        }
    )
    assert '"{{script}} {{policy}}"' in html


def test_drawing_library_is_bundled_once_per_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bundling took half of an export. What is kept must be whole, and may be missing."""
    import vl_convert

    def other_process() -> str:
        page_module._vega.cache_clear()
        return page_module._vega()

    bundle, calls = vl_convert.javascript_bundle, []

    def counted(**options: Any) -> str:
        calls.append(options)
        return bundle(**options)

    monkeypatch.setenv("ENTROPYLONG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vl_convert, "javascript_bundle", counted)
    script = other_process()
    assert other_process() == script
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert other_process() == script
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file, so that nothing can be kept")
    assert other_process() == script
    assert len(calls) == 3
    page_module._vega.cache_clear()
