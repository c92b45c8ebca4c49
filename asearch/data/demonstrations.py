"""Scripted episodes for supervised training before reinforcement learning.

They are made by the agent's own state machine with a local search, so their token sequences have the form of those that are
trained later. Facts are drawn anew for every few demonstrations (among the same people, in the same wording): the policy learns
to read and to copy, never the facts of the world that it is tested in.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from asearch.agents.episode import EpisodeStart, EpisodeState, GenerateRequest, Tokenizer, ToolCall
from asearch.agents.registry import make_agent
from asearch.agents.scripted import run_episode
from asearch.agents.segments import segments
from asearch.agents.settings import AgentSettings
from asearch.corpus.index import BM25Index
from asearch.corpus.passages import Passage
from asearch.data.masking import without_generated
from asearch.data.worlds.expert import Expert, Seen
from asearch.data.worlds.lexicon import FACT_PATTERNS, PASTIMES, POINTER_PATTERNS, WORDS
from asearch.data.worlds.questions import word_question
from asearch.data.worlds.world import MAX_HOPS, World, WorldSpec
from schemas.records import Document, Segment, ToolResult

PATTERN_WORDS = tuple(
    " " + pattern.format(subject="", noun="", value="", one="", other="").strip()
    for pattern in (*FACT_PATTERNS, *POINTER_PATTERNS, *PASTIMES)
)
"""The words of all sentence patterns, so that no draw of the facts brings a new one."""


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
    n_complete: int = 0
    """The first so many follow every chain to its end and train every decision: they teach what tells a complete chain from
    an incomplete one. The others then teach to stop early all the same."""

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
    words = (relation.noun for relation in drawn.relations)
    return [*texts, *PATTERN_WORDS, *(f" {word} {word}/{word}" for word in words), WORDS, settings.instruction]


def _fresh(
    world: WorldSpec, settings: AgentSettings, tokenizer: Tokenizer, spec: DemonstrationSpec, rng: random.Random
) -> Iterator[list[Segment]]:
    agent = make_agent(settings, tokenizer)
    per_draw = -(-spec.n_demonstrations // spec.n_draws)
    for number in range(spec.n_demonstrations):
        drawn, tools = _draw(replace(world, facts_seed=number // per_draw), settings.topk)
        chain = drawn.random_chain(rng, rng.randint(1, MAX_HOPS))
        start = EpisodeStart(episode=f"demo-{number}", question=word_question(rng, chain), settings=settings)
        p_stop, trained_share = (0.0, 1.0) if number < spec.n_complete else (spec.p_stop, spec.trained_share)
        demonstrator = _Demonstrator(Expert(chain, p_stop, rng), tools, tokenizer)
        state = run_episode(start, tokenizer, demonstrator.generate, demonstrator.call, agent=agent)
        untrained = [span for span in demonstrator.decisions if rng.random() >= trained_share]
        yield without_generated(segments(state), [n for span in untrained for n in span])


@lru_cache(maxsize=1)
def _draw(world: WorldSpec, topk: int) -> tuple[World, LocalTools]:
    drawn = World(world)
    return drawn, LocalTools(drawn, topk)


class _Demonstrator:
    """An expert and its tools as an episode calls them. `decisions` are the generated tokens, by number, that go on."""

    def __init__(self, expert: Expert, tools: LocalTools, tokenizer: Tokenizer) -> None:
        self.decisions: list[range] = []
        self._expert, self._tools, self._tokenizer = expert, tools, tokenizer
        self._seen: list[Seen] = []
        self._n_generated = 0

    def generate(self, request: GenerateRequest, state: EpisodeState) -> str:
        tip = state.memory if state.call is None else state.call.tip
        thought = state.pieces[tip].thinking
        written = self._expert.read(self._seen) if request.kind == "read" else self._expert.act(self._seen, thought=thought)
        if written.decision is not None:
            start, end = (len(self._tokenizer.encode(written.text[:char])) for char in written.decision)
            self.decisions.append(range(self._n_generated + start, self._n_generated + end))
        self._n_generated += len(self._tokenizer.encode(written.text))
        return written.text

    def call(self, call: ToolCall) -> ToolResult:
        result = self._tools(call)
        text = "\n".join(document.text for document in result.documents)
        self._seen.append(Seen("search" if call.tool == "search" else "page", text))
        return result
