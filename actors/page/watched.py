"""One episode that somebody looks at: its items so far, and what comes next to all who look."""

import asyncio

import msgspec

from actors.page.numbers import number
from actors.page.subscribers import Audience, Subscriber, sse
from actors.runtime.bus import Stored
from actors.runtime.run_source import RunSource
from asearch.agents.recorded import FactSelection
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import EpisodeRow
from asearch.traces.story import Item, StoryTeller, outcome_item
from schemas.codec import MalformedError, decode_result
from schemas.events import EpisodeTaken, ToolReturned, TraceFact
from schemas.records import ToolResult

_encode = msgspec.json.Encoder().encode


class WatchedEpisode:
    """Items in order. A position is the number of an item with its id, so that one of another history is noticed."""

    def __init__(self, source: RunSource, episode: str) -> None:
        self.episode = episode
        self.audience = Audience()
        self.items: list[Item] = []
        self._source = source
        self._turn = asyncio.Lock()
        self._row = b""
        self._forget()

    def _forget(self) -> None:
        self.items = []
        self._teller = StoryTeller(None, None, None)
        self._selection = FactSelection()
        self._told: list[str] = []
        self.last_sequence = 0

    @property
    def trouble(self) -> str:
        """Why the texts of prompts cannot be told, if they cannot."""
        return self._source.missing_model or self._teller.trouble

    @property
    def has_ended(self) -> bool:
        """Whether its outcome is among the items."""
        return bool(self.items) and self.items[-1]["kind"] == "outcome"

    async def catch_up(self) -> None:
        """Tell what is recorded and was not told; everything again where what was told is not what is recorded.

        Raises InputError for an episode that the run has not, BusError.
        """
        async with self._turn:
            record = await self._source.record(self.episode)
            if [fact.id for fact in record.facts[: len(self._told)]] != self._told or self._outcome_differs(record):
                self._forget()
                self.audience.put(sse("reset", b"{}"))
            await self._tell_rest(record)

    def _outcome_differs(self, record: EpisodeRecord) -> bool:
        return self.has_ended and (record.outcome is None or record.outcome.id != self.items[-1]["id"])

    async def _tell_rest(self, record: EpisodeRecord) -> None:
        done = len(self._told)
        for fact, sequence in zip(record.facts[done:], record.sequences[done:], strict=True):
            self._selection.takes(fact)
            self._tell(fact, sequence, record.result_of(fact) if isinstance(fact, ToolReturned) else None)
        if record.outcome is not None and not self.has_ended:
            self._add([outcome_item(record.outcome)])

    async def offer(self, stored: Stored) -> None:
        """Take the next message of TRACE under the episode's key."""
        async with self._turn:
            event = stored.event
            if stored.sequence <= self.last_sequence or self.has_ended or not self._selection.takes(event):
                return
            self._tell(event, stored.sequence, await self._result(event) if isinstance(event, ToolReturned) else None)

    async def _result(self, event: ToolReturned) -> ToolResult | None:
        if event.result is not None or event.blob is None:
            return event.result
        data = await self._source.blob(event.blob)
        try:
            return None if data is None else decode_result(data)
        except MalformedError:
            return None

    def _tell(self, fact: TraceFact, sequence: int, result: ToolResult | None) -> None:
        if isinstance(fact, EpisodeTaken) and not self._told:
            self._teller = self._source.teller(fact.request)
            if (opening := self._teller.opening()) is not None:
                self._add([opening])
        self._told.append(fact.id)
        self.last_sequence = max(self.last_sequence, sequence)
        self._add(self._teller.tell(fact, sequence, result))

    def _add(self, items: list[Item]) -> None:
        for item in items:
            self.items.append(item)
            self.audience.put(self._message(len(self.items) - 1))

    def _message(self, number: int) -> bytes:
        item = self.items[number]
        return sse("item", _encode(item), f"{number}:{item['id']}")

    def show_row(self, row: EpisodeRow) -> None:
        """Show the row where it has changed."""
        data = _encode(row)
        if data != self._row:
            self._row = data
            self.audience.show("row", sse("row", data))

    def join(self, subscriber: Subscriber, position: str) -> None:
        """Send what follows a position (all without one), then what comes."""
        head, _, name = position.partition(":")
        begin = number(head, -1) + 1
        if begin and (begin > len(self.items) or self.items[begin - 1]["id"] != name):
            subscriber.put(sse("reset", b"{}"))
            begin = 0
        for each in range(begin, len(self.items)):
            subscriber.put(self._message(each))
        if self._row:
            subscriber.show("row", sse("row", self._row))
        self.audience.join(subscriber)
