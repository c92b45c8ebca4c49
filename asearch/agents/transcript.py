"""What a finished episode tells graders and reports: the model's own texts and the tool log, nothing of any page."""

import msgspec

from asearch.agents.episode import EpisodeState
from asearch.agents.packed import n_tokens
from schemas.records import ToolUse, Version


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """`generated` is the text of every complete generation, by turn. `oldest` is the version of the
    lowest step that any token has."""

    status: str
    answer: str | None
    generated: list[str]
    tool_log: list[ToolUse]
    n_turns: int
    n_tokens_generated: int
    n_searches: int
    n_reads: int
    oldest: Version | None


def transcript(state: EpisodeState) -> Transcript:
    """The transcript of an episode; the status of one that is still open is `open`.

    `n_searches` and `n_reads` count calls that returned without an error: searches, and pages that were found.
    """
    own = [piece for piece in state.pieces if piece.own]
    versions = [run.version for piece in own for run in piece.versions]
    served = [use for use in state.tool_log if use.error is None]
    return Transcript(
        status=state.finished.status if state.finished else "open",
        answer=state.finished.answer if state.finished else None,
        generated=list(state.generated),
        tool_log=list(state.tool_log),
        n_turns=state.n_turns,
        n_tokens_generated=sum(n_tokens(piece.ids) for piece in own),
        n_searches=sum(use.tool == "search" for use in served),
        n_reads=sum(use.tool == "access" and use.n_documents > 0 for use in served),
        # By step, as staleness is counted: a later lineage may have gone back to an earlier step.
        oldest=min(versions, key=lambda version: (version.step, version.lineage), default=None),
    )
