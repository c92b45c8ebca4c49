"""Demonstrations of the protocol's form alone, on a corpus and questions that nobody has written chains for.

An episode searches for words of its question, opens a page that the search returned now and then, and answers with a word of
what it read. It shows how to write a search, not what to search for.
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from asearch.agents.episode import EpisodeStart, EpisodeState, GenerateRequest, Tokenizer, ToolCall
from asearch.agents.registry import make_agent
from asearch.agents.scripted import run_episode
from asearch.agents.segments import segments
from asearch.agents.settings import AgentSettings
from asearch.corpus.index import BM25Index
from asearch.corpus.passages import read_passages
from asearch.data.tasks import LoadedTask, load_tasks
from asearch.errors import InputError
from schemas.records import Document, Segment, ToolResult

MAX_PASSAGES = 2000
"""Passages of the corpus that demonstrations search: the form needs no more."""
N_DEMONSTRATIONS = 2000
MAX_WORDS = 4
READ_SHARE = 0.3


class _Clerk:
    """Writes generations of the right form; knows the question and the last result."""

    def __init__(self, question: str, index: BM25Index, topk: int, rng: random.Random) -> None:
        self._words = [word.strip("?.,!;:\"'()<>") for word in question.split()] or ["it"]
        self._index, self._topk, self._rng = index, topk, rng
        self._result = ToolResult()
        self._found: dict[str, Document] = {}
        self._searched = False

    def generate(self, request: GenerateRequest, state: EpisodeState) -> str:
        if request.kind == "read":
            return f" {self._word()} </think>"
        tip = state.memory if state.call is None else state.call.tip
        thought = f" {self._word()} </think>" if state.pieces[tip].thinking else ""
        return f"{thought} {self._action(state)}"

    def _action(self, state: EpisodeState) -> str:
        if not self._searched:
            self._searched = True
            query = " ".join(word for word in self._words if len(word) > 2)
            return f"<search> {' '.join(query.split()[-MAX_WORDS:]) or 'it'} </search>"
        read = any(use.tool == "access" for use in state.tool_log)
        if self._result.documents and not read and self._rng.random() < READ_SHARE:
            return f"<access> {self._result.documents[0].url} </access>"
        return f"<answer> {self._word()} </answer>"

    def _word(self) -> str:
        """A word of the last result, else of the question."""
        words = self._words
        if self._result.documents:
            words = self._result.documents[0].text.split()[:40] or words
        word = self._rng.choice(words).strip("?.,!;:\"'()<>")
        return word or "it"

    def call(self, call: ToolCall) -> ToolResult:
        if call.tool == "access":
            page = self._found.get(call.argument)
            self._result = ToolResult(documents=[] if page is None else [page])
            return self._result
        hits = self._index.search([call.argument], self._topk)[0]
        self._result = ToolResult(documents=[Document(url=p.url, text=p.contents, title=p.title) for p, _ in hits])
        self._found |= {document.url: document for document in self._result.documents}
        return self._result


def format_demonstrations(
    corpus: Path, tasks: Path, settings: AgentSettings, tokenizer: Tokenizer, seed: int, tokens_per_batch: int
) -> Iterator[list[Segment]]:
    """Batches of about `tokens_per_batch` tokens without end; deterministic in its arguments."""
    rng = random.Random(f"form-{seed}")
    index = BM25Index.build(list(islice(read_passages(corpus), MAX_PASSAGES)))
    questions = load_tasks(tasks)
    made = [_episode(n, rng.choice(questions), settings, tokenizer, index, rng) for n in range(N_DEMONSTRATIONS)]
    made = [episode for episode in made if episode]
    if not made:
        raise InputError(f"no question of {tasks} fits in the model's context: raise agent.max_context_tokens")
    batch: list[Segment] = []
    n_tokens = 0
    while True:
        rng.shuffle(made)
        for episode in made:
            batch += episode
            n_tokens += sum(segment.columns["ids"].shape[0] for segment in episode)
            if n_tokens >= tokens_per_batch:
                yield batch
                batch, n_tokens = [], 0


def _episode(
    number: int, task: LoadedTask, settings: AgentSettings, tokenizer: Tokenizer, index: BM25Index, rng: random.Random
) -> list[Segment]:
    agent = make_agent(settings, tokenizer)
    start = EpisodeStart(episode=f"form-{number}", question=task.question, settings=settings)
    clerk = _Clerk(task.question, index, settings.topk, rng)
    return segments(run_episode(start, tokenizer, clerk.generate, clerk.call, agent=agent))
