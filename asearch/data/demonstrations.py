"""Scripted episodes for supervised training before reinforcement learning.

They are made by the agent's own state machine with a local search, so their token sequences have the form of those that are
trained later. Facts are drawn anew for every few demonstrations (among the same people, in the same wording): the policy learns
to read and to copy, never the facts of the world that it is tested in.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from asearch.agents.episode import Agent, EpisodeStart, EpisodeState, GenerateRequest, Tokenizer, ToolCall
from asearch.agents.registry import make_agent
from asearch.agents.scripted import run_episode
from asearch.agents.segments import segments
from asearch.agents.settings import AgentSettings
from asearch.corpus.index import BM25Index
from asearch.corpus.passages import Passage
from asearch.data.masking import trained_positions, without_tokens
from asearch.data.worlds.expert import Expert, Seen
from asearch.data.worlds.lexicon import WORDS
from asearch.data.worlds.questions import word_question
from asearch.data.worlds.world import MAX_HOPS, World, WorldSpec
from schemas.records import Document, Segment, ToolResult

DECISION = " <search>"
"""The text with which a generation goes on where it could have answered."""


@dataclass(frozen=True)
class DemonstrationSpec:
    """How many demonstrations are made of how many draws of the facts, and how they decide while the chain is incomplete.

    `p_stop` of them answer at each found value. Of the decisions to go on only as many are trained as make `stop_early` the
    share of stops among the trained decisions; what comes after such a decision is trained all the same. So long chains are
    practised often although the policy learns to stop early.
    """

    n_demonstrations: int = 12_000
    n_draws: int = 64
    stop_early: float = 0.8
    p_stop: float = 0.4

    @property
    def trained_share(self) -> float:
        """Share of the decisions to go on that are trained."""
        if not 0 < self.stop_early < 1:
            return float(self.stop_early == 0)
        odds = self.p_stop / (1 - self.p_stop)
        return min(1.0, odds * (1 - self.stop_early) / self.stop_early)


class LocalTools:
    """Search and access over one draw of a world, without a server; results are remembered."""

    def __init__(self, world: World, topk: int) -> None:
        articles = list(world.articles())
        passages = [Passage(id=a.id, contents=a.passage, url=a.url, title=a.title) for a in articles]
        self._index = BM25Index.build(passages)
        self._pages = {a.url: Document(url=a.url, text=" ".join(a.page), title=a.title) for a in articles}
        self._topk = topk
        self._results: dict[tuple[str, str], ToolResult] = {}

    def __call__(self, call: ToolCall) -> ToolResult:
        """The result of a call."""
        key = (call.tool, call.argument)
        if key not in self._results:
            self._results[key] = ToolResult(documents=self._documents(call))
        return self._results[key]

    def _documents(self, call: ToolCall) -> list[Document]:
        if call.tool == "search":
            hits = self._index.search([call.argument], self._topk)[0]
            return [Document(url=p.url, text=p.contents, title=p.title) for p, _ in hits]
        page = self._pages.get(call.argument)
        return [] if page is None else [page]


def demonstrations(
    world: WorldSpec, settings: AgentSettings, tokenizer: Tokenizer, spec: DemonstrationSpec, seed: int, tokens_per_batch: int
) -> Iterator[list[Segment]]:
    """Batches of about `tokens_per_batch` tokens without end: new demonstrations first, then the same ones in other orders.

    Deterministic in its arguments. `world.facts_seed` is ignored.
    """
    rng = random.Random(f"demonstrations-{seed}")
    made: list[list[Segment]] = []
    fresh = _fresh(world, settings, tokenizer, spec, rng)

    def repeated() -> Iterator[list[Segment]]:
        while True:
            rng.shuffle(made)
            yield from made

    batch: list[Segment] = []
    n_tokens = 0
    for source in (fresh, repeated()):
        for episode in source:
            if source is fresh:
                made.append(episode)
            batch += episode
            n_tokens += sum(segment.columns["ids"].shape[0] for segment in episode)
            if n_tokens >= tokens_per_batch:
                yield batch
                batch, n_tokens = [], 0


def vocabulary_texts(world: WorldSpec, settings: AgentSettings) -> list[str]:
    """Texts that hold every word a demonstration or an episode in such a world can contain, each with its usual space."""
    drawn = World(world)
    texts = [" " + " ".join((a.url, a.passage, *a.page)) for a in drawn.articles()]
    rng = random.Random(0)
    chains = [drawn.chain(name, (relation,)) for name in drawn.names for relation in drawn.relations]
    texts += [f"Question: {word_question(rng, chain)}\n" for chain in chains]
    words = (word for r in drawn.relations for word in (r.noun, r.synonym, r.verb))
    return [*texts, *(f" {word} {word}/{word}" for word in words), WORDS, settings.instruction]


def _fresh(
    world: WorldSpec, settings: AgentSettings, tokenizer: Tokenizer, spec: DemonstrationSpec, rng: random.Random
) -> Iterator[list[Segment]]:
    agent = make_agent(settings, tokenizer)
    decision = tokenizer.encode(DECISION)
    per_draw = -(-spec.n_demonstrations // spec.n_draws)
    numbers = count()
    for draw in range(spec.n_draws):
        drawn = World(replace(world, facts_seed=draw))
        tools = LocalTools(drawn, settings.topk)
        for _ in range(per_draw):
            number = next(numbers)
            if number >= spec.n_demonstrations:
                return
            episode = _demonstrate(drawn, tools, agent, tokenizer, spec.p_stop, f"demo-{number}", settings, rng)
            yield _mask_decisions(episode, decision, spec.trained_share, rng)


def _demonstrate(
    world: World,
    tools: LocalTools,
    agent: Agent,
    tokenizer: Tokenizer,
    p_stop: float,
    name: str,
    settings: AgentSettings,
    rng: random.Random,
) -> list[Segment]:
    chain = world.random_chain(rng, rng.randint(1, MAX_HOPS))
    expert = Expert(chain, p_stop, rng)
    seen: list[Seen] = []

    def policy(request: GenerateRequest, state: EpisodeState) -> str:
        return expert.read(seen) if request.kind == "read" else expert.act(seen, thought=_thinking(state))

    def observed(call: ToolCall) -> ToolResult:
        result = tools(call)
        text = "\n".join(document.text for document in result.documents)
        seen.append(Seen("search" if call.tool == "search" else "page", text))
        return result

    start = EpisodeStart(episode=name, question=word_question(rng, chain), settings=settings)
    return segments(run_episode(start, tokenizer, policy, observed, agent=agent))


def _thinking(state: EpisodeState) -> bool:
    tip = state.memory if state.call is None else state.call.tip
    return state.pieces[tip].thinking


def _mask_decisions(episode: Sequence[Segment], decision: list[int], trained_share: float, rng: random.Random) -> list[Segment]:
    """Take most decisions to go on out of the loss. The first search of an episode is none: there is nothing to answer with."""
    n_searches = 0
    kept: list[Segment] = []
    for segment in episode:
        untrained: list[int] = []
        for position in trained_positions(segment, decision):
            n_searches += 1
            if n_searches > 1 and rng.random() >= trained_share:
                untrained += range(position, position + len(decision))
        kept.append(without_tokens(segment, untrained))
    return kept
