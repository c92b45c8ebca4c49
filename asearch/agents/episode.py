"""The words of an episode: its start, the facts it is folded from, the requests it makes, and its state.

An agent is a pure function: the same start and the same facts give the same state and the same requests, in the driver,
in replay, in evaluation and in simulation. Token ids and log-probabilities are packed little-endian bytes
(`asearch.agents.packed`), so that states are immutable and comparable, and nothing is copied between an event's columns and
the state.
"""

from typing import Literal, Protocol

import msgspec
import xxhash

from asearch.agents.packed import unpack_ids
from asearch.agents.pieces import Piece
from asearch.agents.settings import AgentSettings
from asearch.errors import AsearchError
from schemas.records import ToolResult, ToolUse, VersionRun

Finish = Literal["stop", "length", "abort"]
CallKind = Literal["act", "read", "answer"]
Status = Literal["answered", "forced", "ended", "malformed", "exhausted", "stopped"]


class FactError(AsearchError):
    """A fact does not fit the state it is applied to: the log was not written by this agent, or was cut in the middle."""


class TokenGapError(FactError):
    """Generated tokens do not begin where the tokens held end: a gap or an overlap."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the plain values of this module."""


class EpisodeStart(Value, frozen=True, kw_only=True):
    """What an episode begins from. `purpose` is `train`, `eval` or `synthesis`; the sampling seeds follow from `seed`."""

    episode: str
    question: str
    settings: AgentSettings
    seed: int = 0
    purpose: str = "train"


# --- facts ------------------------------------------------------------------------------------------------------------


class GeneratedTokens(Value, frozen=True, kw_only=True):
    """Tokens of a call from `offset` on, counted from the first token that the call generated.

    `ids` u4 and `logprobs` f4, packed, of equal length; `versions` cover [0, n) of *this* piece. The call is complete when
    `finish` is `stop` or `length`; `abort` means that the engine gave up, and the rest is asked for again.
    """

    request: str
    offset: int
    ids: bytes
    logprobs: bytes
    versions: tuple[VersionRun, ...]
    finish: Finish | None = None


class ToolReplied(Value, frozen=True, kw_only=True):
    """The result of a tool call."""

    call: str
    result: ToolResult


class DeadlineNear(Value, frozen=True, kw_only=True):
    """Wall-clock time runs out: the next call that begins is the forced answer."""


class Stopped(Value, frozen=True, kw_only=True):
    """The episode ends now for a reason outside the policy (`deadline`, `run_ended`, `engine_outage`): it is dropped."""

    reason: str


Fact = GeneratedTokens | ToolReplied | DeadlineNear | Stopped

# --- requests ---------------------------------------------------------------------------------------------------------


class GenerateRequest(Value, frozen=True, kw_only=True):
    """Ask the policy for tokens. `held` are the tokens of this call that are here already: the engine goes on after them.

    An engine looks for stop strings in new tokens only: one that is cut by a resumption may be missed, and the generation then
    goes on to the next stop. Its tokens stay the policy's own, and parsing takes the last match of a tag.

    `id` is deterministic and the same for every resumption. `max_new_tokens` counts what may still come after `held`.
    `prompt` and `held` are packed u4.
    """

    id: str
    turn: int
    kind: CallKind
    prompt: bytes
    held: bytes
    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int

    @property
    def input_bytes(self) -> bytes:
        """Packed u4 ids that the engine is given: prompt and tokens held."""
        return self.prompt + self.held

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt without the tokens held."""
        return unpack_ids(self.prompt)

    @property
    def n_held(self) -> int:
        """Offset of the next token of this call."""
        return len(self.held) // 4


_encoder = msgspec.msgpack.Encoder()


def request_hash(asked: GenerateRequest) -> str:
    """Names what a call asks for: xxh3-64 hex, the same for a request and every resumption of it.

    Covers id, turn, kind, prompt, stop strings, sampling parameters and the budget of tokens of the whole call; not what
    follows from the tokens held: these, the rest of the budget, and the seed, which is drawn anew for every resumption.
    """
    budget = asked.max_new_tokens + asked.n_held
    sampling = (float(asked.temperature), float(asked.top_p), asked.top_k)
    # Msgpack says where it ends, so that what follows it can only be the prompt.
    digest = xxhash.xxh3_64(_encoder.encode((asked.id, asked.turn, asked.kind, asked.stop, *sampling, budget)))
    digest.update(asked.prompt)
    return digest.hexdigest()


class ToolCall(Value, frozen=True, kw_only=True):
    """Ask a tool. `id` is deterministic: a takeover asks again under the same id."""

    id: str
    turn: int
    tool: str
    argument: str


class Finished(Value, frozen=True, kw_only=True):
    """The agent is done. With a `dropped_reason` the episode must not be graded (infrastructure failure is not policy failure).

    `answered`: gave an answer of its own; `forced`: gave one when asked for it near a budget; `ended`: end-of-text without
    an answer; `malformed`: no valid action; `exhausted`: budgets ran out without an answer; `stopped`: see `dropped_reason`.
    """

    status: Status
    answer: str | None = None
    dropped_reason: str | None = None
    message: str = ""


Request = GenerateRequest | ToolCall | Finished

# --- state ------------------------------------------------------------------------------------------------------------


class OpenCall(Value, frozen=True, kw_only=True):
    """A generation under way. `tip` is the piece that its prompt ends with."""

    id: str
    turn: int
    kind: CallKind
    tip: int
    stop: tuple[str, ...]
    max_new_tokens: int
    ids: bytes = b""
    logprobs: bytes = b""
    versions: tuple[VersionRun, ...] = ()

    @property
    def n_held(self) -> int:
        """Tokens that are here: the offset at which the next fact must begin."""
        return len(self.ids) // 4


class Observation(Value, frozen=True, kw_only=True):
    """A tool text that waits to be shown: `full` for the call that reads it, `short` for memory afterwards.

    `reading`: it gets a call of its own (stop `</think>`).
    """

    full: str
    short: str
    reading: bool


class EpisodeState(Value, frozen=True, kw_only=True):
    """The fold of the facts. Exactly one of `call`, `tool` and `finished` is set.

    `pieces` is the text of the episode as a tree (`asearch.agents.pieces`); `memory` is the piece that the next act follows.
    `generated` holds the decoded text of each complete generation, by turn.
    """

    start: EpisodeStart
    pieces: tuple[Piece, ...]
    memory: int
    call: OpenCall | None = None
    tool: ToolCall | None = None
    finished: Finished | None = None
    queue: tuple[Observation, ...] = ()
    generated: tuple[str, ...] = ()
    tool_log: tuple[ToolUse, ...] = ()
    n_turns: int = 0
    n_malformed: int = 0
    deadline_near: bool = False


Step = tuple[EpisodeState, tuple[Request, ...]]


class Tokenizer(Protocol):
    """What an agent needs of a tokenizer. `encode` adds no special tokens; `decode` keeps every token's text."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens (end of text, padding, chat marks): a generation that ends with one has ended its text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        ...


class Agent(Protocol):
    """An agent. All three functions are pure; none raises for anything that a policy or a web page can write."""

    def begin(self, start: EpisodeStart) -> Step:
        """The first state, and what is asked for first."""
        ...

    def apply(self, state: EpisodeState, fact: Fact) -> Step:
        """The next state, and what is newly asked for. Raises FactError where the fact does not fit the state."""
        ...

    def pending(self, state: EpisodeState) -> tuple[Request, ...]:
        """What the state waits for: what a driver that takes over asks for again, with the tokens already held."""
        ...
