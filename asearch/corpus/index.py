"""BM25 over the passages of a corpus: bm25s with the numpy backend, exact and deterministic."""

import re
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt

from asearch.corpus.passages import Passage

# A run of word characters is one token; characters of scripts written without spaces are one token each.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Hit = tuple[Passage, float]


def tokenise(text: str) -> list[str]:
    """Lower-case words, no stemming, no stop words."""
    return _TOKEN.findall(text.lower())


class BM25Index:
    """A read-only index; `search` may be called from several threads at once."""

    def __init__(self, passages: Sequence[Passage], vocabulary: dict[str, int], scorer: "bm25s.BM25 | None") -> None:
        self._passages = passages
        self._vocabulary = vocabulary
        self._scorer: Any = scorer
        order = sorted(range(len(passages)), key=lambda i: passages[i].id)
        self._rank_N: npt.NDArray[np.int64] = np.empty(len(passages), dtype=np.int64)
        self._rank_N[order] = np.arange(len(passages))

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> "BM25Index":
        """Index title and contents of every passage, with the parameters that Pyserini (and so Search-R1) uses by default."""
        vocabulary: dict[str, int] = {}
        rows = [[vocabulary.setdefault(token, len(vocabulary)) for token in tokenise(_text(p))] for p in passages]
        if not vocabulary:
            return cls(passages, vocabulary, None)
        scorer = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numpy", auto_compile=False)
        scorer.index((rows, dict(vocabulary)), create_empty_token=False, show_progress=False)
        return cls(passages, vocabulary, scorer)

    def __len__(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query the at most k best passages, best first, ties in the order of their ids.

        Passages that share no word with the query are not returned, so an empty query has no results.
        """
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[Hit]:
        ids = [self._vocabulary[token] for token in tokenise(query) if token in self._vocabulary]
        if not ids or k <= 0:
            return []
        scores_N: npt.NDArray[np.float32] = self._scorer.get_scores_from_ids(ids)
        found = np.flatnonzero(scores_N > 0)
        if len(found) > k:
            # Everything that ties with the k-th score stays in, so that the cut below is made by id.
            worst = np.partition(scores_N[found], len(found) - k)[len(found) - k]
            found = found[scores_N[found] >= worst]
        best = found[np.lexsort((self._rank_N[found], -scores_N[found]))][:k]
        return [(self._passages[int(i)], float(scores_N[i])) for i in best]


def _text(passage: Passage) -> str:
    return passage.contents if passage.title in passage.contents else f"{passage.title}\n{passage.contents}"
