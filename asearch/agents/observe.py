"""From a tool's result to the texts that the policy is shown."""

from asearch.agents.codec import ProtocolCodec
from asearch.agents.episode import Observation, ToolCall
from asearch.agents.settings import AgentSettings
from asearch.tools.format import ResultText, ToolFormat, error_text, page_texts, search_text
from schemas.records import ToolResult

OUTAGES = frozenset({"retryable", "timeout"})
"""Errors that are the infrastructure's fault: they drop the episode. All others are shown to the policy."""


def observations(
    call: ToolCall, result: ToolResult, settings: AgentSettings, form: ToolFormat, codec: ProtocolCodec
) -> tuple[Observation, ...]:
    """The texts of a result in the order in which they are shown, at least one.

    Every chunk of a page that was found is read by a call of its own; other texts only where `read_search` says so.
    """
    if result.error is not None:
        return (observation(error_text(form), settings.read_search, codec),)
    if call.tool == "search":
        return (observation(search_text(result.documents[: settings.topk], form), settings.read_search, codec),)
    chunks = page_texts(result.documents, form)
    found = any(document.text.strip() for document in result.documents)
    return tuple(observation(chunk, found or settings.read_search, codec) for chunk in chunks)


def correction(settings: AgentSettings, form: ToolFormat, codec: ProtocolCodec) -> Observation:
    """What a malformed generation is answered with."""
    text = form.opening + settings.correction + form.closing
    return observation(ResultText(full=text, short=text), False, codec)


def observation(text: ResultText, reading: bool, codec: ProtocolCodec) -> Observation:
    """A tool text in the codec's form."""
    return Observation(full=codec.observation(text.full), short=codec.observation(text.short), reading=reading)
