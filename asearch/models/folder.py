"""Whether a Hugging Face folder holds a model that this project can train, found out from headers alone: no tensor is read."""

from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from asearch.errors import InputError
from asearch.models.config import ModelConfig
from asearch.models.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_folder(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    """Configuration and tokenizer of a model folder whose weights have the names and shapes that they must have.

    Raises InputError that names what is missing, unsupported or does not fit.
    """
    if not folder.is_dir():
        raise InputError(f"there is no model folder {folder}")
    config, tokenizer = ModelConfig.load(folder), Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}; "
            "give the tokenizer that belongs to the model"
        )
    found, expected = _shapes(folder), config.shapes()
    if config.tied:
        found.pop("lm_head.weight", None)
    for name in (*expected, *found):
        if found.get(name) != expected.get(name):
            there, wanted = (str(list(shape)) if shape else "nothing" for shape in (found.get(name), expected.get(name)))
            raise InputError(f"the weights in {folder} are not those of its config.json: {name} is {there}, {wanted} is expected")
    return config, tokenizer


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _files(folder):
        try:
            with safe_open(folder / file, framework="np") as held:
                for name in held.keys():  # noqa: SIM118  (the object is not a mapping)
                    shapes[name] = tuple(held.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read weights {folder / file}: {error}") from error
    return shapes


def _files(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            raw = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Any])
            return sorted(set(msgspec.convert(raw.get("weight_map"), dict[str, str]).values()))
        except msgspec.MsgspecError as error:
            raise InputError(f"{folder / INDEX} is not a safetensors index: {error}") from error
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: only safetensors weights are read")
