"""ASearcher's base agent: one policy that thinks, searches, opens pages, reads them chunk by chunk, and answers.

Source: ASearcher (arXiv 2508.07976, section 3.1, and the released search agent): memory of full and short forms, reading calls
by the same policy, last match of each tag, first kind executed. Ours beyond it: forced answers near a budget, outages that drop
the episode, and texts that are tokenized once.
"""

from functools import lru_cache

import xxhash
from msgspec.structs import replace

from asearch.agents.codec import ProtocolCodec
from asearch.agents.context import ContextStrategy
from asearch.agents.episode import (
    CallKind,
    DeadlineNear,
    EpisodeStart,
    EpisodeState,
    Fact,
    FactError,
    Finished,
    GeneratedTokens,
    GenerateRequest,
    Observation,
    OpenCall,
    Request,
    Status,
    Step,
    Tokenizer,
    ToolCall,
    ToolReplied,
)
from asearch.agents.observe import OUTAGES, correction, observations
from asearch.agents.packed import n_tokens, pack_ids, unpack_ids
from asearch.agents.parse import thinking_after
from asearch.agents.pieces import ROOT, Origin, Piece, path_ids
from asearch.agents.received import with_tokens
from asearch.agents.settings import AgentSettings, checked, tool_format
from asearch.errors import ConfigError
from schemas.records import ToolUse


class TagAgent:
    """The agent for one set of settings; holds no episode's state. `encode` and `decode` of the tokenizer must be pure."""

    def __init__(self, settings: AgentSettings, tokenizer: Tokenizer, codec: ProtocolCodec, context: ContextStrategy) -> None:
        self.settings = checked(settings)
        self._tokenizer = tokenizer
        self._codec = codec
        self._context = context
        self._form = tool_format(settings)
        self._special_ids = tokenizer.special_ids
        self._encode_fixed = lru_cache(maxsize=16)(self._encode)

    # --- the three functions of an agent ---

    def begin(self, start: EpisodeStart) -> Step:
        """The state with the question in memory, and the first act. Raises ConfigError for settings of another agent."""
        if start.settings != self.settings:
            raise ConfigError(f"{start.episode} was started with other settings than this agent has.")
        ids = self._encode(self._codec.opening(self.settings.instruction, start.question))
        opening = Piece(ids=ids, parent=ROOT, end=n_tokens(ids), origin="prompt", turn=0, thinking=True)
        return self._next(EpisodeState(start=start, pieces=(opening,), memory=0))

    def apply(self, state: EpisodeState, fact: Fact) -> Step:
        """The next state. Raises FactError for a fact that nothing in the state waits for."""
        if isinstance(fact, GeneratedTokens):
            return self._tokens(state, fact)
        if isinstance(fact, ToolReplied):
            return self._tool_replied(state, fact)
        if state.finished is not None:
            return state, ()
        if isinstance(fact, DeadlineNear):
            return replace(state, deadline_near=True), ()
        return _finish(state, Finished(status="stopped", dropped_reason=fact.reason))

    def pending(self, state: EpisodeState) -> tuple[Request, ...]:
        """The one request that the state waits for."""
        if state.call is not None:
            return (self._request(state, state.call),)
        if state.tool is not None:
            return (state.tool,)
        return (state.finished,) if state.finished is not None else ()

    # --- facts ---

    def _tokens(self, state: EpisodeState, fact: GeneratedTokens) -> Step:
        if state.call is None or state.call.id != fact.request:
            raise FactError(f"{state.start.episode}: tokens for {fact.request}, which is not the open call.")
        call = with_tokens(state.call, fact)
        if fact.finish is None:
            return replace(state, call=call), ()
        if fact.finish != "abort":
            return self._complete(state, call)
        if self._nothing_left(call):
            return self._complete(state, call)
        return replace(state, call=call), (self._request(state, call),)

    def _nothing_left(self, call: OpenCall) -> bool:
        """Whether an aborted call is complete all the same: nothing is left to ask for, or its end is already there."""
        if n_tokens(call.ids) >= call.max_new_tokens:
            return True
        ids = unpack_ids(call.ids)
        text = self._tokenizer.decode(ids)
        return text.endswith(call.stop) or self._ended(ids, text, call)

    def _ended(self, ids: list[int], text: str, call: OpenCall) -> bool:
        """Whether a generation ended the text; a tokenizer may count the tags among its special tokens."""
        return bool(ids) and ids[-1] in self._special_ids and not text.endswith(call.stop)

    def _tool_replied(self, state: EpisodeState, fact: ToolReplied) -> Step:
        call, result = state.tool, fact.result
        if call is None or call.id != fact.call:
            raise FactError(f"{state.start.episode}: a reply to {fact.call}, which is not the open tool call.")
        use = ToolUse(
            turn=call.turn,
            tool=call.tool,
            argument=call.argument,
            n_documents=len(result.documents),
            error=result.error,
        )
        state = replace(state, tool=None, tool_log=(*state.tool_log, use))
        if result.error in OUTAGES:
            message = f"{call.tool}: {result.error}: {result.message}"
            return _finish(state, Finished(status="stopped", dropped_reason="tool_outage", message=message))
        queue = observations(call, result, self.settings, self._form, self._codec)
        return self._next(replace(state, queue=queue))

    # --- a generation is complete ---

    def _complete(self, state: EpisodeState, call: OpenCall) -> Step:
        ids = unpack_ids(call.ids)
        text = self._tokenizer.decode(ids)
        before = state.pieces[call.tip]
        piece = Piece(
            ids=call.ids,
            parent=call.tip,
            end=before.end + len(ids),
            origin="generated",
            turn=call.turn,
            thinking=thinking_after(text, before.thinking),
            own=True,
            logprobs=call.logprobs,
            versions=call.versions,
        )
        state = replace(
            state,
            pieces=(*state.pieces, piece),
            call=None,
            n_turns=state.n_turns + 1,
            generated=(*state.generated, text),
        )
        ended = self._ended(ids, text, call)
        if call.kind == "answer":
            return self._forced_done(state, text)
        if call.kind == "read":
            return self._read_done(state, text, ended)
        return self._act_done(state, text, ended)

    def _forced_done(self, state: EpisodeState, text: str) -> Step:
        answer = self._codec.forced_answer(text)
        status: Status = "exhausted" if answer is None else "forced"
        return _finish(state, Finished(status=status, answer=answer))

    def _act_done(self, state: EpisodeState, text: str, ended: bool) -> Step:
        tip = len(state.pieces) - 1
        state = replace(state, memory=tip)
        action = self._codec.action(text, self.settings.tools)
        if action is not None and action.kind == "answer":
            return _finish(state, Finished(status="answered", answer=action.argument))
        if ended:
            return _finish(state, Finished(status="ended"))
        if action is None:
            return self._malformed(state)
        turn = state.n_turns - 1
        tool = ToolCall(id=f"{state.start.episode}:t{turn}", turn=turn, tool=action.kind, argument=action.argument)
        return replace(state, tool=tool), (tool,)

    def _read_done(self, state: EpisodeState, text: str, ended: bool) -> Step:
        answer = self._codec.answer(text)
        if answer is not None:
            return _finish(state, Finished(status="answered", answer=answer))
        if ended:
            return _finish(state, Finished(status="ended"))
        read, queue = state.queue[0], state.queue[1:]
        state = self._remember(replace(state, queue=queue), read)
        if not state.pieces[state.memory].thinking:
            return self._next(state)
        state = replace(state, n_malformed=state.n_malformed + 1)
        if self._gives_up(state):
            return _finish(state, Finished(status="malformed"))
        return self._next(self._append(state, self._encode_fixed(self._codec.closing()), "forced", False))

    def _malformed(self, state: EpisodeState) -> Step:
        state = replace(state, n_malformed=state.n_malformed + 1)
        if self._gives_up(state):
            return _finish(state, Finished(status="malformed"))
        return self._next(replace(state, queue=(correction(self.settings, self._form, self._codec),)))

    def _gives_up(self, state: EpisodeState) -> bool:
        return self.settings.on_malformed == "end" or state.n_malformed >= self.settings.max_malformed

    def _remember(self, state: EpisodeState, read: Observation) -> EpisodeState:
        """Memory after a reading call, whose generation is the last piece: another text in the place of what was read."""
        tip = len(state.pieces) - 1
        remembered = self._context.remembered(read)
        if remembered == read.full:
            return replace(state, memory=tip)
        generation = state.pieces[tip]
        state = self._append(state, self._encode(remembered), "tool", True)
        return self._append(state, generation.ids, "generated", generation.thinking)

    # --- the next call ---

    def _next(self, state: EpisodeState) -> Step:
        """Open the next call: a reading of the first text in the queue, an act, or a forced answer."""
        if state.n_turns >= self.settings.max_turns:
            return _finish(state, Finished(status="exhausted"))
        if state.deadline_near or state.n_turns >= self.settings.max_turns - self.settings.forced_turns:
            return self._force(state)
        if not state.queue:
            return self._open(state, "act", state.memory, self._codec.act_stops(self.settings.tools))
        first = state.queue[0]
        ids = self._encode(first.full)
        if not self._fits(state.pieces[state.memory].end + n_tokens(ids)):
            return self._force(state)
        memory = state.memory
        state = self._append(state, ids, "tool", True)
        if first.reading:
            tip = state.memory
            return self._open(replace(state, memory=memory), "read", tip, self._codec.read_stops())
        return self._next(replace(state, queue=state.queue[1:]))

    def _force(self, state: EpisodeState) -> Step:
        """Ask for the answer now. A tool text that waits unread is shown in its short form, if that fits."""
        if state.queue:
            short = self._encode(state.queue[0].short)
            if self._fits(state.pieces[state.memory].end + n_tokens(short)):
                state = self._append(state, short, "tool", True)
            state = replace(state, queue=())
        opening = self._codec.forced(state.pieces[state.memory].thinking)
        state = self._append(state, self._encode_fixed(opening), "forced", False)
        return self._open(state, "answer", state.memory, self._codec.answer_stops())

    def _open(self, state: EpisodeState, kind: CallKind, tip: int, stop: tuple[str, ...]) -> Step:
        """Open a call after the piece `tip`, within the context that is left; where it does not fit, force the answer."""
        end = state.pieces[tip].end
        if kind != "answer" and not self._fits(end):
            return self._force(state)
        reserve = 0 if kind == "answer" else self.settings.forced_tokens
        room = min(self.settings.max_new_tokens, self.settings.max_context_tokens - reserve - end)
        if room < 1:
            return _finish(state, Finished(status="exhausted"))
        turn = state.n_turns
        call_id = f"{state.start.episode}:g{turn}"
        call = OpenCall(id=call_id, turn=turn, kind=kind, tip=tip, stop=stop, max_new_tokens=room)
        return replace(state, call=call), (self._request(replace(state, call=call), call),)

    def _fits(self, end: int) -> bool:
        """Whether a call may begin after `end` tokens, with a forced answer still possible afterwards."""
        settings = self.settings
        return end + settings.min_new_tokens + settings.forced_tokens <= settings.max_context_tokens

    def _request(self, state: EpisodeState, call: OpenCall) -> GenerateRequest:
        settings, start = self.settings, state.start
        held = n_tokens(call.ids)
        return GenerateRequest(
            id=call.id,
            turn=call.turn,
            kind=call.kind,
            prompt=path_ids(state.pieces, call.tip),
            held=call.ids,
            stop=call.stop,
            max_new_tokens=call.max_new_tokens - held,
            temperature=settings.eval_temperature if start.purpose == "eval" else settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=sampling_seed(start.seed, call.turn, held),
        )

    # --- pieces ---

    def _append(self, state: EpisodeState, ids: bytes, origin: Origin, thinking: bool) -> EpisodeState:
        """Memory with one more piece."""
        end = state.pieces[state.memory].end + n_tokens(ids)
        piece = Piece(ids=ids, parent=state.memory, end=end, origin=origin, turn=max(state.n_turns - 1, 0), thinking=thinking)
        return replace(state, pieces=(*state.pieces, piece), memory=len(state.pieces))

    def _encode(self, text: str) -> bytes:
        return pack_ids(self._tokenizer.encode(text))


def sampling_seed(seed: int, turn: int, offset: int) -> int:
    """Seed of a call in [0, 2^31): another one for every turn, and for a call that goes on after `offset` tokens."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{turn}:{offset}".encode()) & 0x7FFF_FFFF


def _finish(state: EpisodeState, finished: Finished) -> Step:
    return replace(state, finished=finished, call=None, tool=None, queue=()), (finished,)
