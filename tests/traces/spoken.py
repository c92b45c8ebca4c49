"""An episode whose policy and pages say everything that one would not want to be obeyed."""

from asearch.traces.rows import EpisodeRow
from asearch.traces.told import TokenLine, TokenTable, ToldEpisode
from schemas.records import AnswerKey

EVIL = (
    "<script>alert('x')</script><img src=x onerror=\"alert(1)\"><a href='javascript:alert(2)' onclick=alert(3)>a</a>"
    "</pre></title></style><svg onload=alert(4)><!-- \x1b[2J\x1b]0;owned\x07\x9b31m\x00\x7f\r"
    "\u202eright to left\u202c \u2066isolated\u2069 \u200f\u200e\u061c &lt;b&gt; ]]> \u05e9\u05dc\u05d5\u05dd \ud83d"
)
LONG = "0123456789abcdef" * 65_536
"""1 MiB."""


def hostile_episode() -> ToldEpisode:
    """Every text of it is evil; a page has 1 MiB."""
    when = 1_800_000_000_000_000_000
    row = EpisodeRow(
        episode="t-1-0", group="t-1", member=0, purpose="train", task=EVIL, question=EVIL, answer=EVIL, requested_ns=when,
        ended_ns=when + 10**9, stage="graded", ending="answered", reward=0.5, correct=False, n_turns=1, fate="discarded",
        reason=EVIL, step=3, version="1.0",
    )  # fmt: skip
    documents = [{"url": f"http://{EVIL}", "title": EVIL, "text": EVIL}, {"url": "long", "title": "", "text": f"{EVIL}{LONG}end"}]
    items = [
        {"id": "o", "kind": "shown", "turn": 0, "pieces": [{"piece": 0, "origin": "prompt", "n_tokens": 3, "text": f"\n{EVIL}"}]},
        {"id": "a", "at_ns": when + 1, "kind": "taken", "driver": EVIL, "attempt": 0},
        {
            "id": "b", "at_ns": when + 2, "kind": "generation", "turn": 0, "request": "g0", "text": EVIL, "n": 4, "elapsed_ns": 5,
            "engine": EVIL, "versions": [{"version": "1.0", "start": 0, "end": 4}], "n_prompt": 3, "finish": "stop", "n_asked": 1,
            "reads": False, "forced": False,
        },
        {"id": "c", "at_ns": when + 3, "kind": "called", "turn": 0, "call": "t0", "tool": EVIL, "argument": EVIL},
        {
            "id": "d", "at_ns": when + 4, "kind": "returned", "turn": 0, "call": "t0", "documents": documents, "error": None,
            "message": EVIL, "elapsed_ns": 7,
        },
        {
            "id": "e", "kind": "shown", "turn": 1, "shortened": [0],
            "pieces": [{"piece": 1, "origin": "tool", "n_tokens": 9, "text": EVIL}],
        },
        {
            "id": "f", "at_ns": when + 5, "kind": "finished", "status": EVIL, "answer": EVIL, "n_turns": 1, "n_tokens": 4,
            "elapsed_ns": 9,
        },
        {
            "id": "g", "at_ns": when + 6, "kind": "outcome", "outcome": "graded", "reward": 0.5, "correct": False, "status": EVIL,
            "answer": EVIL, "parts": [{"name": EVIL, "value": 0.5, "weight": 1.0, "segment": EVIL, "start": 0, "end": 2}],
        },
    ]  # fmt: skip
    tokens = [TokenTable(EVIL, [TokenLine(0, 7, EVIL, -0.25, 1, "1.0", "generated"), TokenLine(1, 8, "\n", None, 0, "", "tool")])]
    key = AnswerKey(task="t", answers=[EVIL, "gold"])
    return ToldEpisode(run="r", row=row, items=items, key=key, trace_id="ab" * 16, notes=[EVIL], tokens=tokens)
