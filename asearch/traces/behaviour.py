"""What a policy does in an episode, by rules on its trace: the behaviours that papers on search agents report.

Sources: DeepResearcher (arXiv 2504.03160: planning, cross-validation, reflection and query rewriting, honest answers when
nothing was found) and ASearcher (arXiv 2508.07976: turns, searches, pages and generated tokens per episode). Both describe these
by examples; the rules below are ours, and each says exactly what it looks for. A rule on thoughts reads generated text alone, so
that no page can bring a behaviour about; results are read only for the documents that came and whether they name the answer.
Rules that look for words know English ones.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec

from asearch.traces.record import EpisodeRecord
from asearch.traces.turns import Turn, turns_of
from schemas.events import EpisodeGraded
from schemas.records import Document

COUNTS = ("n_turns", "n_searches", "n_reads", "n_tokens")
FLAGS = (
    "planning",
    "reformulation",
    "reflection",
    "cross_validation",
    "verification",
    "honest_non_answer",
    "repeated_query",
    "error_recovery",
)
SIMILAR_QUERIES = 0.5
"""Share of the words of the shorter query that a reformulation has in common with the query before."""

_WORD = re.compile(r"\w+")
_STOP_TEXT = """a an and are as at be by did do does find for from had has have how i in is it its let me my name need of on or s
search should that the then they this to was we were what when where which who whom whose why will with"""
_STOP = frozenset(_STOP_TEXT.split())
_LISTED = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*]|step \d+\b)", re.IGNORECASE)
_ORDERED = re.compile(
    r"\b(?:first(?:ly)?|to begin|to start|i need to|i should|i will|i'll|let me|let's|plan)\b"
    r".*?\b(?:then|next|after that|afterwards|second(?:ly)?|finally|once)\b",
    re.IGNORECASE | re.DOTALL,
)
_UNSATISFIED = re.compile(
    r"\b(?:not (?:found|here|there|helpful|relevant|enough|sufficient|what)|no (?:information|mention|results?|answer)|"
    r"(?:does|do|did)(?: not|n't) (?:mention|say|contain|answer|provide|help|have|give|tell)|"
    r"(?:try|search|use) (?:again|another|a different|different)|instead|however|wait|wrong|irrelevant|unclear|contradict\w*)\b",
    re.IGNORECASE,
)
_CHECKING = re.compile(
    r"\b(?:verif(?:y|ies|ied|ication)|confirm(?:s|ed|ation)?|(?:double|cross)[- ]check|make sure|check (?:if|whether|that))\b",
    re.IGNORECASE,
)
_FIND = r"(?:be )?(?:find|found|determined?|answer(?:ed)?|verif(?:y|ied)|identif(?:y|ied)|established)"
_NOT_KNOWN_AT_ALL = re.compile(r"\W*(?:unknown|unanswerable|undetermined|inconclusive|not sure|unsure)\W*", re.IGNORECASE)
"""Words that say so alone; inside an answer they may be a part of a name."""
_NOT_KNOWN = re.compile(
    r"\b(?:i (?:do not|don't) know|(?:is|are|was|were) (?:not known|unknown)|not (?:found|available|possible)\b|"
    rf"(?:could|can|was|were)(?: ?not|n't) {_FIND}|unable to {_FIND}|"
    r"no (?:answer|reliable|sufficient|conclusive|information|evidence) ?(?:\w+ )?(?:was|were|is|could|available|about|on)|"
    r"insufficient (?:information|evidence))\b",
    re.IGNORECASE,
)


class Behaviour(msgspec.Struct, kw_only=True, frozen=True):
    """What an episode shows. Every flag in FLAGS has the turns that show it in `evidence`."""

    episode: str
    purpose: str = ""
    label: str = ""
    progress: int = 0
    """Policy step at which its group was admitted."""
    graded: bool = False
    correct: bool | None = None
    reward: float | None = None
    n_turns: int = 0
    n_searches: int = 0
    """Searches that returned without an error."""
    n_reads: int = 0
    """Pages that were found."""
    n_tokens: int = 0
    """Generated tokens."""
    planning: bool = False
    reformulation: bool = False
    reflection: bool = False
    cross_validation: bool = False
    verification: bool = False
    honest_non_answer: bool = False
    repeated_query: bool = False
    error_recovery: bool = False
    evidence: dict[str, list[int]] = {}
    """Turn numbers by flag; a flag that is not raised has no entry."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules look at: the turns and how the episode ended. `answer` None: it gave none."""

    turns: Sequence[Turn]
    answer: str | None = None
    ending: str = ""

    @property
    def calls(self) -> list[Turn]:
        """The turns that called a tool."""
        return [turn for turn in self.turns if turn.tool]


Rule = Callable[[Seen], list[int]]


@lru_cache(maxsize=4096)
def normalised(text: str) -> str:
    """Words in lower case with single spaces between them, and one before and after: a whole word is found with `in`."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def content_words(text: str) -> set[str]:
    """The words of a text that carry its subject: those that no stop list has."""
    return {word for word in _WORD.findall(text.casefold()) if word not in _STOP}


# --- the rules: each returns the turns that show the behaviour, none where it is absent -------------------------------


def planning(seen: Seen) -> list[int]:
    """Before anything was found the policy says more than its first step.

    The thought up to and with the first tool call (a) has two or more list items (`1.`, `-`, `step 1`), or (b) an opening such
    as "first", "I need to", "let me" with a later "then", "next", "after that", "finally", or (c) names something that the first
    query leaves out and a later query asks for. (DeepResearcher: planning of multi-hop questions.)
    """
    calls = seen.calls
    if not calls:
        return []
    first = calls[0]
    opening = [turn for turn in seen.turns if turn.turn <= first.turn]
    raw = "\n".join(turn.text or "" for turn in opening)
    thought = " ".join(turn.thought for turn in opening)
    shown = [turn.turn for turn in opening if turn.thought]
    if len(_LISTED.findall(raw)) >= 2 or _ORDERED.search(thought):
        return shown
    ahead = content_words(thought) - content_words(first.argument)
    later = [turn.turn for turn in calls[1:] if turn.tool == "search" and ahead & content_words(turn.argument)]
    return [*shown, later[0]] if later else []


def reformulation(seen: Seen) -> list[int]:
    """The same need in other words: a search whose query differs from the one before and shares half of its words.

    Compared are content words of neighbouring searches; shared words count against the shorter query, and the two must not be
    equal as sets. (DeepResearcher: reflection, which refines the query.)
    """
    searches = [turn for turn in seen.calls if turn.tool == "search"]
    found: list[int] = []
    for before, turn in pairwise(searches):
        old, new = content_words(before.argument), content_words(turn.argument)
        shorter = min(len(old), len(new))
        if old != new and shorter and len(old & new) >= SIMILAR_QUERIES * shorter:
            found.append(turn.turn)
    return found


def reflection(seen: Seen) -> list[int]:
    """The policy says that what it got is not what it needs, and goes on looking.

    A thought after a tool result has a phrase such as "not found", "does not mention", "instead", "however", "wait", "try
    another", and a tool call follows in this turn or a later one. (DeepResearcher: reflection.)
    """
    calls = seen.calls
    if not calls:
        return []
    first, last = calls[0].turn, calls[-1].turn
    return [turn.turn for turn in seen.turns if first < turn.turn <= last and _UNSATISFIED.search(turn.thought)]


def cross_validation(seen: Seen) -> list[int]:
    """The answer was found, and looked for in another source before it was given.

    A result names the final answer (as whole words). A later call, before the answer, is (a) a search whose query names the
    answer too, or (b) opens a page of another URL that names it. Answers of one character, and those that say that nothing was
    found, do not count. (DeepResearcher: cross-validation.)
    """
    first, named = _first_sight(seen)
    if first is None:
        return []
    known = _naming(first.documents, named)
    for turn in seen.calls:
        if turn.turn <= first.turn:
            continue
        asks = turn.tool == "search" and named in normalised(turn.argument)
        opens = turn.tool == "access" and bool(_naming(turn.documents, named) - known)
        if asks or opens:
            return [first.turn, turn.turn]
    return []


def verification(seen: Seen) -> list[int]:
    """The policy had the answer and checked it before it gave it.

    After the first result that names the final answer, it (a) opens a page that named it or names it, or (b) looks for it in
    another source (`cross_validation`), or (c) says that it checks ("verify", "confirm", "make sure", "double-check") and calls a
    tool in that turn or later.
    """
    first, named = _first_sight(seen)
    if first is None:
        return []
    known = _naming(first.documents, named)
    later = [turn for turn in seen.calls if turn.turn > first.turn]
    for turn in later:
        if turn.tool == "access" and (turn.argument in known or _naming(turn.documents, named)):
            return [first.turn, turn.turn]
    crossed = cross_validation(seen)
    if crossed or not later:
        return crossed
    says = [t.turn for t in seen.turns if first.turn < t.turn <= later[-1].turn and _CHECKING.search(t.thought)]
    return [first.turn, says[0]] if says else []


def honest_non_answer(seen: Seen) -> list[int]:
    """The policy says that it does not know rather than guess.

    The answer it gave says so ("unknown", "cannot be determined", "no information", "I don't know" ...), or it ended its text
    without an answer and its last thought says so. An empty answer, a malformed end and a spent budget say nothing.
    (DeepResearcher: honesty.)
    """
    if not seen.turns:
        return []
    if seen.answer is not None:
        return [seen.turns[-1].turn] if _says_unknown(seen.answer) else []
    last = seen.turns[-1]
    return [last.turn] if seen.ending == "ended" and _says_unknown(last.thought) else []


def repeated_query(seen: Seen) -> list[int]:
    """A tool was asked for what it had been asked for in this episode: same tool, same words of the query, same URL."""
    before: set[tuple[str, str]] = set()
    found: list[int] = []
    for turn in seen.calls:
        key = (turn.tool, normalised(turn.argument) if turn.tool == "search" else turn.argument.strip())
        if key in before:
            found.append(turn.turn)
        before.add(key)
    return found


def error_recovery(seen: Seen) -> list[int]:
    """A call failed or brought nothing, and a later one, with another argument, brought something."""
    calls = seen.calls
    for number, failed in enumerate(calls):
        if failed.was_served or not failed.returned_ns:
            continue
        for turn in calls[number + 1 :]:
            if turn.was_served and (turn.tool, turn.argument) != (failed.tool, failed.argument):
                return [failed.turn, turn.turn]
    return []


RULES: dict[str, Rule] = {
    "planning": planning,
    "reformulation": reformulation,
    "reflection": reflection,
    "cross_validation": cross_validation,
    "verification": verification,
    "honest_non_answer": honest_non_answer,
    "repeated_query": repeated_query,
    "error_recovery": error_recovery,
}


def _says_unknown(text: str) -> bool:
    return _NOT_KNOWN_AT_ALL.fullmatch(text) is not None or _NOT_KNOWN.search(text) is not None


def _first_sight(seen: Seen) -> tuple[Turn | None, str]:
    """The first call whose result names the final answer, and the answer as it is looked for."""
    named = normalised(seen.answer or "")
    if len(named) <= 3 or _says_unknown(seen.answer or ""):
        return None, named
    return next((turn for turn in seen.calls if _naming(turn.documents, named)), None), named


def _naming(documents: Sequence[Document], named: str) -> set[str]:
    """The URLs of the documents that name something."""
    return {document.url for document in documents if named in normalised(document.text) or named in normalised(document.title)}


# --- an episode -------------------------------------------------------------------------------------------------------


def behaviour_of(record: EpisodeRecord, turns: Sequence[Turn] | None = None) -> Behaviour:
    """What an episode shows. `turns` are those of the record, where they are known already."""
    turns = turns_of(record) if turns is None else turns
    finished, outcome, request = record.finished, record.outcome, record.request
    graded = outcome if isinstance(outcome, EpisodeGraded) else None
    seen = Seen(
        turns=turns,
        answer=finished.answer if finished is not None else None,
        ending=finished.status if finished is not None else "",
    )
    evidence = {name: found for name, rule in RULES.items() if (found := rule(seen))}
    return Behaviour(
        episode=record.episode,
        purpose=outcome.purpose if outcome is not None else request.purpose if request is not None else "",
        label=outcome.label if outcome is not None else request.label if request is not None else "",
        progress=request.progress if request is not None else 0,
        graded=graded is not None,
        correct=graded.correct if graded is not None else None,
        reward=graded.reward.value if graded is not None else None,
        n_turns=len(turns),
        n_searches=sum(turn.tool == "search" and turn.returned_ns > 0 and not turn.error for turn in turns),
        n_reads=sum(turn.tool == "access" and turn.was_served for turn in turns),
        n_tokens=sum(len(turn.ids) for turn in turns),
        evidence=evidence,
        **dict.fromkeys(evidence, True),
    )


# --- a run ------------------------------------------------------------------------------------------------------------


def summarise(behaviours: Sequence[Behaviour], n_buckets: int = 10) -> dict[str, Any]:
    """What the graded episodes of a run show: the training episodes, in buckets of policy steps too, and every evaluation.

    Of every flag the share and n, of every count mean and max. A bucket spans `first_step..last_step` at admission. Episodes
    that were dropped or died are left out: an outage is no behaviour.
    """
    graded = [each for each in behaviours if each.graded]
    trained = [each for each in graded if each.purpose == "train"]
    labels = list(dict.fromkeys(each.label or each.purpose for each in graded if each.purpose != "train"))
    return {
        "n": len(graded),
        "n_left_out": len(behaviours) - len(graded),
        "train": _summary(trained),
        "by_step": _by_step(trained, n_buckets),
        "by_label": {
            label: _summary([e for e in graded if e.purpose != "train" and (e.label or e.purpose) == label]) for label in labels
        },
    }


def _by_step(trained: list[Behaviour], n_buckets: int) -> list[dict[str, Any]]:
    if not trained:
        return []
    low, high = min(each.progress for each in trained), max(each.progress for each in trained)
    width = max(1, -(-(high - low + 1) // n_buckets))
    buckets: dict[int, list[Behaviour]] = {}
    for each in trained:
        buckets.setdefault((each.progress - low) // width, []).append(each)
    return [
        {"first_step": low + number * width, "last_step": min(high, low + (number + 1) * width - 1), **_summary(buckets[number])}
        for number in sorted(buckets)
    ]


def _summary(behaviours: list[Behaviour]) -> dict[str, Any]:
    n = len(behaviours)
    flags: dict[str, Any] = {}
    for name in FLAGS:
        n_shown = sum(getattr(each, name) for each in behaviours)
        flags[name] = {"n": n_shown, "share": round(n_shown / n, 4) if n else None}
    counts: dict[str, Any] = {}
    for name in COUNTS:
        values = [getattr(each, name) for each in behaviours]
        counts[name] = {"mean": round(sum(values) / n, 4) if n else None, "max": max(values, default=None)}
    return {"n": n, "flags": flags, "counts": counts}
