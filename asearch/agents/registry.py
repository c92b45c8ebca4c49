"""Agents, codecs and context strategies by name. Third parties register theirs as entry points of the same groups."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar, cast

from asearch.agents.codec import ProtocolCodec, TagCodec
from asearch.agents.context import AppendAll, ContextStrategy, ShortenPages
from asearch.agents.episode import Agent, Tokenizer
from asearch.agents.settings import AgentSettings
from asearch.agents.tag_agent import TagAgent
from asearch.errors import ConfigError

T = TypeVar("T")
AgentFactory = Callable[[AgentSettings, Tokenizer], Agent]


def _asearcher_base(settings: AgentSettings, tokenizer: Tokenizer) -> Agent:
    codec = _named(CODECS, "codec", settings.codec)()
    context = _named(CONTEXTS, "context", settings.context)()
    return TagAgent(settings, tokenizer, codec, context)


AGENTS: dict[str, AgentFactory] = {"asearcher_base": _asearcher_base}
CODECS: dict[str, Callable[[], ProtocolCodec]] = {"tags": TagCodec}
CONTEXTS: dict[str, Callable[[], ContextStrategy]] = {"shorten_pages": ShortenPages, "append_all": AppendAll}


def make_agent(settings: AgentSettings, tokenizer: Tokenizer) -> Agent:
    """The agent that the settings name. Raises ConfigError for an unknown name or settings that cannot work."""
    return _named(AGENTS, "name", settings.name)(settings, tokenizer)


def _named(known: dict[str, T], field: str, name: str) -> T:
    """Look a plug-in up: those of this package first, then entry points of the group `asearch.agent.{field}`."""
    if name in known:
        return known[name]
    for point in entry_points(group=f"asearch.agent.{field}", name=name):
        return cast(T, point.load())
    raise ConfigError(f"agent.{field} is {name!r}; known: {', '.join(sorted(known))}.")
