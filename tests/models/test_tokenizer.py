from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import InputError
from asearch.models.tokenizer import Tokenizer
from models.models_for_tests import VOCAB, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def test_named_tokens_and_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB
    assert (tokenizer.eos_id, tokenizer.pad_id) == (298, 299)
    assert tokenizer.encode("stop<|eos|>") == [257, 298]
    assert tokenizer.decode([257, 298]) == "stop<|eos|>"
    assert tokenizer.special_ids == {298, 299}


@given(st.text())
def test_every_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids).decode() == text


def test_hash_follows_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert Tokenizer.load(tmp_path).content_hash == tokenizer.content_hash
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|pad|>"}')
    assert Tokenizer.load(tmp_path).content_hash != tokenizer.content_hash


@pytest.mark.parametrize("content", [None, "{", '{"model": 1}'])
def test_missing_or_malformed_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_unknown_named_token_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(InputError, match="<none>"):
        Tokenizer.load(tmp_path)
