"""Sequences begin with the special tokens that the tokenizer itself puts before a text.

The oracle is the tokenizer: its ids of a text with special tokens, minus those of the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    GPT2TokenizerFast,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
)

from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.entropy.special_tokens import TemplateError, prepended_ids
from entropylong_assets.stages.entropy.tokenizer_facts import tokenizer_facts
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets.stages.samples.packing import Framing

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>", "[CLS]", "[SEP]"]
WORDS = ["a", "the", "river", "is", "cold", ".", "7", "5", "+", "The"]
IDS = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}


def tokenizer_with(template: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words. template: around `$A`; empty: no post-processor."""
    words = RustTokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if template:
        words.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=" ".join(template),
            pair=None,
            special_tokens=[(t, IDS[t]) for t in template if t != "$A"],
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


TEMPLATES: list[tuple[list[str], dict[str, str], list[str]]] = [
    ([], {}, []),
    ([], {"bos_token": "<s>"}, []),
    (["<s>", "$A"], {"bos_token": "<s>"}, ["<s>"]),
    (["<s>", "$A"], {}, ["<s>"]),
    (["<s>", "$A", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"]),
    (["$A", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"}, []),
    (["[gMASK]", "<sop>", "$A"], {"eos_token": "</s>"}, ["[gMASK]", "<sop>"]),
    (["[CLS]", "$A", "[SEP]"], {"cls_token": "[CLS]", "sep_token": "[SEP]"}, ["[CLS]"]),
    (["<s>", "<s>", "$A", "<s>"], {"bos_token": "<s>"}, ["<s>", "<s>"]),
    (["</s>", "$A"], {"bos_token": "<s>", "eos_token": "</s>"}, ["</s>"]),
]


@pytest.mark.parametrize(("template", "special", "prepended"), TEMPLATES)
def test_a_sequence_begins_as_the_template_says(
    template: list[str], special: dict[str, str], prepended: list[str], tmp_path: Path
) -> None:
    tokenizer_with(template, **special).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = load_tokenizer(ScoringModelSettings(model=str(tmp_path)))
    assert loaded.bos_ids == tuple(IDS[token] for token in prepended)
    assert loaded.encode(["the river"]) == [[IDS["the"], IDS["river"]]]
    facts = tokenizer_facts(loaded, ScoringModelSettings(), vocab_size=99, sample_tokens=16)
    assert Framing.of(facts).bos_ids == loaded.bos_ids, "samples begin as scored sequences do"
    never = load_tokenizer(ScoringModelSettings(model=str(tmp_path), bos="never"))
    assert never.bos_ids == ()
    always = ScoringModelSettings(model=str(tmp_path), bos="always")
    if prepended:
        assert load_tokenizer(always).bos_ids == loaded.bos_ids
    elif "bos_token" in special:
        assert load_tokenizer(always).bos_ids == (IDS["<s>"],)
    else:
        with pytest.raises(ModelError, match="it has no BOS token"):
            load_tokenizer(always)


def with_flags(kind: Any, **flags: Any) -> Any:
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5, "Ġ": 6}
    return kind(vocab=pieces, merges=[("▁", "a")], unk_token="<unk>", **flags)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (LlamaTokenizerFast, {"add_bos_token": True, "add_eos_token": False}),
        (LlamaTokenizerFast, {"add_bos_token": False, "add_eos_token": True}),
        (LlamaTokenizerFast, {"add_bos_token": True, "add_eos_token": True}),
        (GPT2TokenizerFast, {"bos_token": "<s>", "add_bos_token": True}),
        (GPT2TokenizerFast, {"bos_token": "<s>", "add_bos_token": False}),
    ],
)
def test_flags_of_the_tokenizer_s_class_count(kind: Any, flags: dict[str, Any]) -> None:
    tokenizer = with_flags(kind, **flags)
    whole, bare = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (True, False))
    prepended = list(prepended_ids(tokenizer))
    assert whole[: len(prepended) + len(bare)] == [*prepended, *bare]
    assert bool(prepended) == flags["add_bos_token"] or kind is GPT2TokenizerFast


def test_cls_and_sep_of_a_bert_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "river"])
    )
    assert prepended_ids(BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))) == (2,)


def test_a_template_that_changes_the_text_is_refused() -> None:
    class Reversing:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = [ord(c) for c in text]
            return {"input_ids": [1, *ids[::-1]] if add_special_tokens else ids}

    reversing: Any = Reversing()
    with pytest.raises(TemplateError):
        prepended_ids(reversing)
