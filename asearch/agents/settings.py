"""What a recipe says about its agent. Unknown keys are refused when it is decoded."""

from typing import Literal

import msgspec

PositiveInt = int

OnMalformed = Literal["end", "continue"]
ContextName = str


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a tag agent; the defaults follow ASearcher's base agent (arXiv 2508.07976, 16-node configuration).

    A turn is one model generation, reading calls included. Lengths are in tokens of the policy's tokenizer, `*_chars` in
    characters. `validate()` raises ConfigError for values that contradict each other.
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
    doc_chars: int = 5000
    max_page_chars: int = 250_000
    page_chunk_chars: int = 25_000
    max_chunks: int = 10
    short_chars: int = 100
    """Characters of a page chunk that memory keeps."""
    tool_text: Literal["asearcher", "compact"] = "asearcher"
    """Wording of tool results; `compact` is for small models that pay for every token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    eval_temperature: float = 0.0
    """Used where the purpose is `eval`; 0 is greedy."""
