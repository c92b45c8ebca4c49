"""E4, the context strategy of agents with an append-only memory: what stays of a tool text once it has been read."""

from typing import Protocol

from asearch.agents.episode import Observation


class ContextStrategy(Protocol):
    """Decides about memory. Where what is remembered differs from what was read, the episode's text branches."""

    def remembered(self, observation: Observation) -> str:
        """The text that memory keeps of an observation after its reading call."""
        ...


class ShortenPages:
    """ASearcher: memory keeps the short form. Each chunk of a page that was shortened ends a segment."""

    def remembered(self, observation: Observation) -> str:
        return observation.short


class AppendAll:
    """Memory keeps all that was shown: one segment an episode."""

    def remembered(self, observation: Observation) -> str:
        return observation.full
