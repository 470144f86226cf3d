"""What the trial evaluates: answers, distances, key tokens, tasks, and held-out text.

Failures looked for: an answer scored one token off; a short window that sees too much; a distance
to another pair; a needle that is missing or cut; answers that the item doesn't hold; a held-out
document that a sample contains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from entropylong_assets.audits.trial import held_out, natural_text
from entropylong_assets.audits.trial.evaluation import (
    means_by_row,
    score_items,
    short_window_losses,
    token_losses,
)
from entropylong_assets.audits.trial.folder import Items, Rows, TrialError, pad_rows
from entropylong_assets.audits.trial.network import Network
from entropylong_assets.audits.trial.tasks import LIST_TASKS, TASKS, TaskMaker


@pytest.fixture(scope="module")
def small() -> Network:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return Network(LlamaForCausalLM(config).eval())


def log_p(network: Network, ids: Sequence[int]) -> np.ndarray:
    """log p of each token but the first, from the model's own logits, one row at a time."""
    with torch.no_grad():
        logits = network.hf_model(torch.tensor([list(ids)])).logits[0, :-1].double()
    picked = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return picked.numpy()


def test_answers_are_scored_by_their_own_tokens(small: Network) -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(1, 40, n).astype(np.uint32) for n in (20, 14, 17)]
    # The last item's answer is what the model itself says: exact.
    with torch.no_grad():
        for place in (15, 16):
            ids = torch.from_numpy(rows[2][:place].astype(np.int64))[None]
            rows[2][place] = small.hf_model(ids).logits[0, -1].argmax().item()
    padded = pad_rows(rows, 20, 0)
    starts = np.array([16, 13, 15], np.int32)
    found = score_items(small, Items(padded.token_ids_NT, starts, padded.lengths_N))
    for row, start, value in zip(rows, starts, found["log_likelihood"], strict=True):
        assert value == pytest.approx(log_p(small, row.tolist())[start - 1 :].mean(), abs=1e-5)
    assert found["exact"] == [0.0, 0.0, 1.0]


def test_short_window_sees_no_further_than_it_says(small: Network) -> None:
    draw, window = np.random.default_rng(1), 4
    ids = draw.integers(1, 40, (2, 19)).astype(np.uint32)
    rows = Rows(ids, np.array([19, 13], np.int32))
    long, short = token_losses(small, rows), short_window_losses(small, rows, window)
    assert np.isnan(long[1, 13:]).all()
    assert np.isnan(short[1, 13:]).all()
    assert np.isnan(long[:, 0]).all()
    for row, length in zip((0, 1), (19, 13), strict=True):
        whole = log_p(small, ids[row, :length].tolist())
        np.testing.assert_allclose(long[row, 1:length], -whole, atol=1e-5)
        for place in range(1, length):
            # Pieces begin at multiples of the window, one window before the token's own.
            begin = max(0, place // window * window - window)
            part = log_p(small, ids[row, begin : place + 1].tolist())[-1]
            assert short[row, place] == pytest.approx(-part, abs=1e-5), place


def test_distance_is_to_the_last_same_pair() -> None:
    ids = np.array([1, 2, 3, 1, 2, 9, 2, 3, 1, 2])
    #                  pairs: 12 23 31 12 29 92 23 31 12
    assert natural_text.pair_distances(ids).tolist() == [0, 0, 0, 0, 3, 0, 0, 5, 5, 5]


def test_groups_by_distance_cover_every_repeated_token_once() -> None:
    draw = np.random.default_rng(2)
    rows = Rows(draw.integers(0, 60, (2, 3000)), np.array([3000, 2500], np.int32))
    groups = natural_text.distance_groups(rows)
    parts = [mask for name, mask in groups.items() if name != "all"]
    assert {"never_before", "from_1", "from_512", "from_2048"} <= set(groups)
    assert (sum(mask.astype(int) for mask in parts) == groups["all"]).all()
    assert groups["all"].sum() == 5500


def test_key_tokens_need_gain_low_loss_and_a_long_context() -> None:
    short = np.array([[9.0, 5.0, 5.0, 5.0, 3.0]], np.float32)
    long = np.array([[0.1, 0.1, 2.5, 1.0, 1.5]], np.float32)
    assert natural_text.key_tokens(short, long, 0).tolist() == [[True, True, False, True, False]]
    assert natural_text.key_tokens(short, long, 1)[0, :2].tolist() == [False, False]


def test_means_leave_out_rows_without_such_tokens() -> None:
    losses = np.array([[np.nan, 1.0, 3.0], [np.nan, 5.0, np.nan]], np.float32)
    mask = np.array([[True, True, True], [True, False, True]])
    assert means_by_row(losses, {"some": mask}) == {"some": [2.0, None]}


class Characters:
    """One token per character: every text fits any length exactly."""

    bos_ids = (1,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(c) for c in text] for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


WORDS = ["".join(np.random.default_rng(n).choice(list("abcdefghijkl"), 6)) for n in range(2000)]
WORDS = sorted(set(WORDS))


@pytest.fixture(scope="module")
def maker() -> TaskMaker:
    draw = np.random.default_rng(3)
    texts = [np.array([ord(c) for c in " ".join(draw.choice(WORDS, 400))]) for _ in range(20)]
    return TaskMaker(Characters(), texts, WORDS, 0, 0)


@pytest.mark.parametrize("task", TASKS)
def test_items_hold_their_answer_and_end_with_it(maker: TaskMaker, task: str) -> None:
    items = maker.items(task, 6000, 6)
    again = maker.items(task, 6000, 6)
    assert np.array_equal(items.token_ids_NT, again.token_ids_NT)
    seen = set()
    for ids, start, end in zip(items.token_ids_NT, items.start_N, items.end_N, strict=True):
        body, answer = (
            Characters().decode(part[part > 1]) for part in (ids[:start], ids[start:end])
        )
        assert end == 6000 or (task in LIST_TASKS and 0.9 * 6000 < end <= 6000)
        assert (ids[end:] == 0).all()
        parts = answer.strip().split(", ")
        assert all(part in body for part in parts)
        seen.add(answer)
        check_answer(task, body, parts)
    assert len(seen) == 6


def check_answer(task: str, body: str, parts: list[str]) -> None:
    """Solve the item from its text alone."""
    if "VAR" in body:
        value = re.findall(r"assigned the value (\d+)", body)[0]
        found = re.findall(rf"VAR (\w+) = {value}\.", body)
        while more := re.findall(rf"VAR (\w+) = VAR {found[-1]}\.", body):
            found += more
        assert parts == found
        assert len(found) == 5
    elif "magic" in body:
        key = re.findall(r"numbers? for (\S+) mentioned", body)[-1]
        assert parts == re.findall(rf"numbers for {key} is: (\d+)\.", body)
        keys = re.findall(r"numbers for (\S+) is:", body)
        assert len(set(keys)) == (8 if task == "multi_key" else 1)
        assert len(parts) == (4 if task == "multi_value" else 1)
    else:
        listed = body.partition("\nQuestion")[0]
        words = listed.split("most often.\n")[-1] if "numbered" in body else listed[127:]
        counts = Counter(re.findall(r"[a-z]+", words))
        top = counts.most_common(len(parts) + 1)
        assert {w for w, _ in top[: len(parts)]} == set(parts)
        assert top[-2][1] > top[-1][1]
        if "coded" in body:
            assert parts == [w for w, _ in top[:3]]
        else:
            assert parts == sorted(parts, key=lambda w: words.index(f" {w}"))


def test_too_little_text_is_refused(maker: TaskMaker) -> None:
    poor = TaskMaker(Characters(), maker.texts[:1], WORDS, 0, 0)
    with pytest.raises(TrialError, match="need 12,000 tokens"):
        poor.items("single_needle", 6000, 1)
    few = TaskMaker(Characters(), maker.texts, WORDS[:10], 0, 0)
    with pytest.raises(TrialError, match="10 different words"):
        few.items("single_needle", 1000, 1)


def test_documents_that_samples_contain_are_left_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    texts = [
        "".join(draw.choice(list("abcdefghij "), n)) for n in (900, 900, 900, 200, 300, 250, 40)
    ]
    copied = np.array([ord(c) for c in texts[1]])
    sample = pad_rows([np.concatenate([draw.integers(200, 300, 50), copied[:600]])], 1000, 0)
    chosen = held_out.choose_held_out(
        texts,
        [sample],
        Characters(),  # type: ignore[arg-type]
        held_out.Wanted(1000, natural=2, short_tokens=128, short=2, haystack_tokens=10**6),
        0,
    )
    decoded = [
        Characters().decode(row[:n])
        for rows in (chosen.natural, chosen.short)
        for row, n in zip(rows.token_ids_NT, rows.lengths_N, strict=True)
    ]
    assert decoded == [texts[0], texts[2], texts[3][:128], texts[5][:128]]
    assert [Characters().decode(ids) for ids in chosen.haystack] == [texts[4], texts[6]]
    assert chosen.figures["left_out"] == 1
    # 588 of its 888 runs of 13 tokens: by hand.
    known = held_out.gram_set([sample])
    assert held_out.shared_share(copied, known) == pytest.approx(588 / 888)


def test_nothing_left_of_the_held_out_text_is_one_line() -> None:
    with pytest.raises(TrialError, match="--evaluation"):
        held_out.choose_held_out(["short"], [], Characters(), held_out.Wanted(64), 0)  # type: ignore[arg-type]
