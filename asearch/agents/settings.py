"""What a recipe says about its agent. Unknown keys are refused when it is decoded."""

from typing import Literal

import msgspec

from asearch.errors import ConfigError
from asearch.tools.format import PRESETS, ToolFormat

OnMalformed = Literal["end", "continue"]
LENGTHS = ("max_doc_chars", "max_page_chars", "page_chunk_chars", "max_chunks", "short_chars")


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a tag agent; the defaults follow ASearcher's base agent (arXiv 2508.07976, 16-node configuration).

    A turn is one model generation, reading calls included. Lengths are in tokens of the policy's tokenizer, `*_chars` in
    characters. Values that contradict each other are refused by `checked`.
    """

    name: str = "asearcher_base"
    """Agent in the registry."""
    codec: str = "tags"
    """Protocol codec in the registry: how text becomes actions and back."""
    context: str = "shorten_pages"
    """Context strategy in the registry: what memory keeps of a tool result once it has been read."""
    instruction: str = ""
    """Text before `Question: `."""
    tools: tuple[str, ...] = ("search", "access")
    """Tools offered; tags of others are not actions."""

    max_turns: int = 32
    max_new_tokens: int = 2048
    """Bound of one generation."""
    max_context_tokens: int = 32768
    """Bound of prompt plus generation of every call."""
    forced_turns: int = 1
    """The last so many turns are for a forced answer; 0 switches forcing by turns off."""
    forced_tokens: int = 64
    """Context kept free for a forced answer, its opening included; 0 switches forcing by tokens off."""
    min_new_tokens: int = 8
    """A call with less room than this is not made: the answer is forced instead."""

    read_search: bool = True
    """Search results are read by a call of their own (stop `</think>`) before the next act."""
    on_malformed: OnMalformed = "end"
    """`end`: a generation without an action ends the episode; `continue`: it is answered with `correction`."""
    max_malformed: int = 8
    """With `continue`: the episode ends at this many malformed generations."""
    correction: str = "No valid action. Put a query in <search>, a url in <access> or the result in <answer>."

    topk: int = 5
    """Documents of a search result that are shown."""
    tool_text: str = "asearcher"
    """Preset of `asearch.tools.format`; `compact` is for small models that pay for every token."""
    max_doc_chars: int | None = None
    """This and the next four: lengths in the preset's place, in characters, where they are given."""
    max_page_chars: int | None = None
    page_chunk_chars: int | None = None
    max_chunks: int | None = None
    short_chars: int | None = None

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    eval_temperature: float = 0.0
    """Used where the purpose is `eval`; 0 is greedy."""


def checked(settings: AgentSettings) -> AgentSettings:
    """Return the settings, or raise ConfigError naming the first that cannot work."""
    for field in ("max_turns", "max_new_tokens", "max_context_tokens", "min_new_tokens", "topk"):
        if getattr(settings, field) < 1:
            raise ConfigError(f"agent.{field} must be at least 1, not {getattr(settings, field)}.")
    for field in ("forced_turns", "forced_tokens", "max_malformed"):
        if getattr(settings, field) < 0:
            raise ConfigError(f"agent.{field} must not be negative, but is {getattr(settings, field)}.")
    if settings.forced_turns >= settings.max_turns:
        raise ConfigError(
            f"agent.forced_turns ({settings.forced_turns}) must be less than agent.max_turns ({settings.max_turns}): "
            "no turn would be left for acting."
        )
    if settings.forced_tokens + settings.min_new_tokens >= settings.max_context_tokens:
        raise ConfigError("agent.forced_tokens and agent.min_new_tokens leave nothing of agent.max_context_tokens.")
    unknown = set(settings.tools) - {"search", "access"}
    if unknown:
        raise ConfigError(f"agent.tools names unknown tools: {', '.join(sorted(unknown))}. Known: search, access.")
    tool_format(settings)
    return settings


def tool_format(settings: AgentSettings) -> ToolFormat:
    """The preset with the lengths that the settings change. Raises ConfigError for an unknown preset or a wrong length."""
    preset = PRESETS.get(settings.tool_text)
    if preset is None:
        raise ConfigError(f"agent.tool_text is {settings.tool_text!r}; known presets: {', '.join(sorted(PRESETS))}.")
    lengths = {name: getattr(settings, name) for name in LENGTHS if getattr(settings, name) is not None}
    return msgspec.structs.replace(preset, **lengths)
