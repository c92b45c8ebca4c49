"""The text of an episode as a tree of pieces.

A piece is a run of tokens from one origin that is encoded (or generated) once. Its parent is the piece before it, so a prompt
is a path from the root, and two prompts share a prefix exactly as far as their paths do. An append-only agent makes a single
chain; where memory replaces a tool text by its short form the tree branches. Training sequences are paths of the same tree
(`asearch.agents.segments`), so nothing has to be compared or hashed token by token.
"""

from typing import Literal

import msgspec

from schemas.records import VersionRun

Origin = Literal["prompt", "generated", "tool", "forced"]
ROOT = -1


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A run of tokens. `ids` u4 and `logprobs` f4 are packed; `end` counts the tokens of the path up to and with this piece.

    `own` is True for tokens that were generated *here*: they are trained. A generation that memory repeats in another branch
    has origin `generated` but is not own, and carries no log-probabilities. `versions` cover [0, n) of the piece.
    `thinking`: a `<think>` is open at the end of the piece.
    """

    ids: bytes
    parent: int
    end: int
    origin: Origin
    turn: int
    thinking: bool
    own: bool = False
    logprobs: bytes = b""
    versions: tuple[VersionRun, ...] = ()


def path(pieces: tuple[Piece, ...], tip: int) -> list[int]:
    """Indices of the pieces from the root to `tip`, in order of the text."""
    indices: list[int] = []
    while tip != ROOT:
        indices.append(tip)
        tip = pieces[tip].parent
    indices.reverse()
    return indices


def path_ids(pieces: tuple[Piece, ...], tip: int) -> bytes:
    """Packed ids of the text that ends with `tip`."""
    return b"".join([pieces[index].ids for index in path(pieces, tip)])
