"""Small random models of every supported shape, as Hugging Face folders."""

from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from asearch.models.config import ModelConfig
from asearch.models.weights import save_weights

VOCAB = 300


def small_config(architecture: str = "Qwen3ForCausalLM", tied: bool = True, **changes: object) -> ModelConfig:
    raw: dict[str, object] = {
        "architectures": [architecture],
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }
    return ModelConfig.from_hf(raw | changes)


def random_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights large enough that next-token distributions are far from uniform and differ between seeds."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in config.shapes().items():
        scale = 1.0 if "embed" in name else 0.25
        offset = 1.0 if "norm" in name else 0.0
        tensors[name] = torch.randn(shape, generator=generator) * scale + offset
    return tensors


def write_model(folder: Path, config: ModelConfig, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(msgspec.json.encode(config.to_hf()))
    save_weights(folder, random_tensors(config, seed))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Bytes 0-255, then words to id 297, then <|eos|> and <|pad|>: VOCAB tokens."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = ["Ġthe", "stop", "Ġstop", "</search>", "ab"] + [f"w{i}" for i in range(37)]
    vocab = alphabet | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = HfTokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|eos|>", "<|pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    pad = {"__type": "AddedToken", "content": "<|pad|>", "special": True}
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>", "pad_token": pad, "chat_template": template}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(settings))
