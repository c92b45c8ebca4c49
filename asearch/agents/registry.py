"""Agents, codecs and context strategies by name. Third parties offer theirs as entry points `asearch.agent` and so on."""

from collections.abc import Callable

from asearch.agents.codec import ProtocolCodec, TagCodec
from asearch.agents.context import AppendAll, ContextStrategy, ShortenPages
from asearch.agents.episode import Agent, Tokenizer
from asearch.agents.settings import AgentSettings
from asearch.agents.tag_agent import TagAgent
from asearch.registry import Registry

AGENTS: Registry[Callable[[AgentSettings, Tokenizer], Agent]] = Registry("agent")
CODECS: Registry[Callable[[], ProtocolCodec]] = Registry("codec")
CONTEXTS: Registry[Callable[[], ContextStrategy]] = Registry("context")

CODECS.register("tags")(TagCodec)
CONTEXTS.register("shorten_pages")(ShortenPages)
CONTEXTS.register("append_all")(AppendAll)


@AGENTS.register("asearcher_base")
def asearcher_base(settings: AgentSettings, tokenizer: Tokenizer) -> Agent:
    """ASearcher's base agent with the codec and context strategy that the settings name."""
    return TagAgent(settings, tokenizer, CODECS.get(settings.codec)(), CONTEXTS.get(settings.context)())


def make_agent(settings: AgentSettings, tokenizer: Tokenizer) -> Agent:
    """The agent that the settings name. Raises ConfigError for an unknown name or settings that cannot work."""
    return AGENTS.get(settings.name)(settings, tokenizer)
