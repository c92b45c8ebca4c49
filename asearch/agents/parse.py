"""Tags in what the model wrote. Tool texts are never parsed: a page that contains `<answer>` is only a page."""

from collections.abc import Iterable

import msgspec

ACTION_ORDER = ("search", "access", "answer")


class Action(msgspec.Struct, frozen=True):
    """What a generation asks for: `kind` is `search`, `access` or `answer`; `argument` has no surrounding space."""

    kind: str
    argument: str


def last_tag(text: str, tag: str) -> str | None:
    """Content of the last `<tag>...</tag>` of a text that is closed, stripped; None where there is none."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    last_closing = text.rfind(closing)
    begin = text.rfind(opening, 0, last_closing) if last_closing >= 0 else -1
    if begin < 0:
        return None
    begin += len(opening)
    return text[begin : text.find(closing, begin)].strip()


def first_action(text: str, tools: Iterable[str]) -> Action | None:
    """The action of a generation: of each kind the last match counts, and of those only the first in order is executed.

    Tools that are not offered, and tool calls without an argument, are no action. Order: ASearcher's (search, access, answer).
    """
    for kind in ACTION_ORDER:
        if kind != "answer" and kind not in tools:
            continue
        argument = last_tag(text, kind)
        if argument or (argument is not None and kind == "answer"):
            return Action(kind, argument)
    return None


def thinking_after(text: str, thinking: bool) -> bool:
    """Whether a `<think>` is open after a text that began with `thinking`."""
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    return thinking if opened == closed else opened > closed
