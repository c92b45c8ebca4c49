"""The word tokenizer: exact round trips, one token a word, bounded, loadable by transformers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from asearch.models.config import ModelConfig
from asearch.models.initialise import initialise, small_config
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import END_OF_TEXT, PROTOCOL_TAGS, build_tokenizer, save_tokenizer

TEXTS = ["Who is the tailor of Bano's rival?", "Bano has a tailor. Ärger über Zoë.", " Bano Bano Kiru"]
BUILT = build_tokenizer(TEXTS)


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from([*PROTOCOL_TAGS, "Bano", " ", "\n", "é", "🜁", "<", "/"])).map("".join))
def test_every_text_comes_back(text: str) -> None:
    assert BUILT.decode(BUILT.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_known_words_and_tags_are_single_tokens() -> None:
    ids = BUILT.encode(" Bano </think> <search> tailor Bano </search>\n<information>\n", add_special_tokens=False).tokens
    assert len(ids) == 8
    assert not any(token.special for i, token in BUILT.get_added_tokens_decoder().items() if token.content != END_OF_TEXT)


def test_the_order_of_texts_does_not_matter_and_the_size_is_bounded() -> None:
    assert build_tokenizer(reversed(TEXTS)).to_str() == BUILT.to_str()
    texts = [" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600))]
    small = build_tokenizer(texts, n_vocab_max=400, keep=[" precious"])
    assert small.get_vocab_size(with_added_tokens=True) == 400
    assert len(small.encode(" precious").ids) == 1
    with pytest.raises(ValueError, match="too small"):
        build_tokenizer(texts, n_vocab_max=270)


def test_transformers_loads_it_and_agrees(tmp_path: Path) -> None:
    save_tokenizer(BUILT, tmp_path, 512)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in (*TEXTS, "\n<think> Bano </think> <answer> Kiru </answer>", "<|endoftext|>", "naïve 日本 \t x"):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text == ours.decode(ids)
    assert theirs.eos_token_id == ours.eos_id == ours.pad_id


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen2ForCausalLM"])
def test_a_fresh_model_loads_everywhere(tmp_path: Path, architecture: str) -> None:
    config = small_config(BUILT, architecture=architecture, rope_theta=1000.0)
    initialise(tmp_path, BUILT, config, seed=1)
    assert ModelConfig.load(tmp_path) == config
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == architecture
    assert sum(p.numel() for p in theirs.parameters()) == sum(torch.Size(shape).numel() for shape in config.shapes().values())
    other = tmp_path / "again"
    initialise(other, BUILT, config, seed=1)
    assert (other / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
