"""The tokenizer of a Hugging Face model folder (`tokenizer.json` and `tokenizer_config.json`), without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import xxhash
from tokenizers import Tokenizer as HfTokenizer

from asearch.errors import InputError

_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable latin-1 characters stand for themselves, the other bytes for U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """Text to token ids and back, for one model folder. Holds no torch object; safe to use from one thread at a time."""

    def __init__(self, inner: HfTokenizer, settings: dict[str, Any], content_hash: str) -> None:
        self._inner = inner
        self._byte_level = _is_byte_level(inner)
        self._bytes: dict[int, bytes] = {}
        self._added = {i: token.content for i, token in inner.get_added_tokens_decoder().items()}
        self.special_ids = frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """One more than the largest token id."""
        self.content_hash = content_hash
        """xxh3-128 of both files, in hexadecimal."""
        self.eos_id = self._named(settings, "eos_token")
        self.pad_id = self._named(settings, "pad_token")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads the tokenizer of `folder`. Raises `InputError` where files are missing or not understood."""
        path = Path(folder) / _FILE
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; a model folder needs a {_FILE}") from error
        config_path = Path(folder) / _CONFIG_FILE
        raw_config = config_path.read_bytes() if config_path.is_file() else b"{}"
        try:
            settings = msgspec.json.decode(raw_config, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise InputError(f"{config_path} is not a JSON object: {error}") from error
        try:
            inner = HfTokenizer.from_str(raw.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path} is not a tokenizer that the `tokenizers` library reads: {error}") from error
        return cls(inner, settings, xxhash.xxh3_128_hexdigest(raw + b"\0" + raw_config))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no special tokens are added, those written out in the text are recognised."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens included."""
        return self._inner.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its exact content, None where the vocabulary lacks it."""
        return self._inner.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that one token stands for (possibly part of a character); empty for an unknown id.

        For tokenizers that are not byte-level this is the token decoded alone.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def _token_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        if not self._byte_level:
            return self._inner.decode([token_id], skip_special_tokens=False).encode()
        token = self._inner.id_to_token(token_id) or ""
        if all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        return token.encode()

    def _named(self, settings: dict[str, Any], key: str) -> int | None:
        value = settings.get(key)
        if isinstance(value, dict):
            value = cast(dict[str, Any], value).get("content")
        if value is None:
            return None
        token_id = self._inner.token_to_id(str(value))
        if token_id is None:
            raise InputError(f"{_CONFIG_FILE} names {key} {value!r}, which {_FILE} does not contain")
        return token_id


def _is_byte_level(inner: HfTokenizer) -> bool:
    decoder = cast(dict[str, Any], msgspec.json.decode(inner.to_str())).get("decoder") or {}
    parts: list[dict[str, Any]] = decoder.get("decoders") or [decoder]
    return any(part.get("type") == "ByteLevel" for part in parts)
