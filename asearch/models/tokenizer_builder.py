"""A small tokenizer made from the words of a corpus, in the files that transformers loads.

The vocabulary is the 256 bytes and whole words as they occur, with or without the space before them. There are no merges: a word
is one token or it is spelled in bytes, so every UTF-8 text comes back unchanged.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
TAG_NAMES = ("think", "search", "access", "answer", "information")
PROTOCOL_TAGS = tuple(
    space + tag
    for name in TAG_NAMES
    for tag, spaces in ((f"<{name}>", ("", " ", "\n")), (f"</{name}>", ("", " ")))
    for space in spaces
)
"""The agent's tags, bare and with the white space that usually comes before them, so that a tag costs one token."""

MAX_WORD_BYTES = 64
MAX_TRAINING_CHARS = 64 << 20
"""Characters of text that are counted; the rest of a large corpus is not read."""


def build_tokenizer(
    texts: Iterable[str], n_vocab_max: int = 8192, tags: Sequence[str] = PROTOCOL_TAGS, keep: Iterable[str] = ()
) -> Tokenizer:
    """A tokenizer of at most `n_vocab_max` tokens: bytes, tags, `keep`'s words, then the most frequent words of `texts`.

    The same texts in any order give the same tokenizer, as long as all of them fit in MAX_TRAINING_CHARS. Raises ValueError
    where `n_vocab_max` has no room for bytes, tags and kept words.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    n_reserved = len(alphabet) + len(tags) + 1
    kept = [w for w, _ in _counted(splitter, keep, tags)]
    words = [w for w, _ in _counted(splitter, texts, tags)]
    vocabulary = dict.fromkeys([*alphabet, *kept])
    if n_reserved + len(vocabulary) - len(alphabet) > n_vocab_max:
        raise ValueError(
            f"n_vocab_max={n_vocab_max} is too small for {len(vocabulary)} bytes and kept words and {len(tags)} tags"
        )
    for word in words:
        if len(vocabulary) + len(tags) + 1 >= n_vocab_max:
            break
        vocabulary[word] = None
    model = models.BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, n_context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json. `n_context` is the model's context in tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": n_context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _counted(splitter: pre_tokenizers.ByteLevel, texts: Iterable[str], tags: Sequence[str]) -> list[tuple[str, int]]:
    """Words in byte-level spelling, most frequent first, equals by spelling."""
    counts: Counter[str] = Counter()
    n_chars = 0
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text) if 1 < len(piece) <= MAX_WORD_BYTES)
        n_chars += len(text)
        if n_chars > MAX_TRAINING_CHARS:
            break
    return sorted(((w, n) for w, n in counts.items() if w not in tags), key=lambda item: (-item[1], item[0]))
