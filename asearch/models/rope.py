"""What decides the rotary position embedding of a model: read from `config.json`, without torch."""

from typing import Any

import msgspec

from asearch.errors import InputError


class Llama3Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """The `llama3` scaling of frequencies for contexts longer than those of pre-training (arXiv 2407.21783, section 3.4.2)."""

    factor: float
    """By which pairs that turn slowly turn slower still."""
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def to_hf(self) -> dict[str, Any]:
        """The object to write as `rope_scaling`."""
        return {"rope_type": "llama3", **msgspec.structs.asdict(self)}


class Rope(msgspec.Struct, frozen=True):
    """What decides the rotation of a head at a position."""

    theta: float
    scaling: Llama3Scaling | None = None


def read_scaling(raw: dict[str, Any], where: str) -> Llama3Scaling | None:
    """The scaling that a RoPE object of `config.json` asks for, None for the default. Raises InputError for other types."""
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{where}: RoPE of type {kind!r} is not supported; supported are 'default' and 'llama3'")
    try:
        scaling = msgspec.convert(raw, Llama3Scaling)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: RoPE of type 'llama3': {error}") from error
    if scaling.factor <= 0 or scaling.high_freq_factor <= scaling.low_freq_factor or scaling.low_freq_factor <= 0:
        raise InputError(f"{where}: RoPE of type 'llama3' needs factor > 0 and high_freq_factor > low_freq_factor > 0")
    return scaling
