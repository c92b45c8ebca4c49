"""Episodes in one process from a policy that writes texts: demonstrations, simulation and tests."""

from collections.abc import Callable

from asearch.agents.episode import (
    Agent,
    EpisodeStart,
    EpisodeState,
    Fact,
    Finished,
    GeneratedTokens,
    GenerateRequest,
    Tokenizer,
    ToolCall,
    ToolReplied,
)
from asearch.agents.packed import ZERO_LOGPROB, pack_ids
from asearch.agents.registry import make_agent
from schemas.records import ToolResult, Version, VersionRun

TextPolicy = Callable[[GenerateRequest, EpisodeState], str]
ToolBox = Callable[[ToolCall], ToolResult]
FIRST_VERSION = Version(lineage=0, step=0)


def run_episode(
    start: EpisodeStart,
    tokenizer: Tokenizer,
    policy: TextPolicy,
    tools: ToolBox,
    version: Version = FIRST_VERSION,
    agent: Agent | None = None,
) -> EpisodeState:
    """Run an episode to its end and return its last state.

    `policy` returns the text of a whole generation, its stop string included; its tokens get log-probability 0 and `version`.
    A text of more tokens than the call may have is cut there (finish `length`). Pass `agent` to reuse one between episodes.
    """
    agent = agent or make_agent(start.settings, tokenizer)
    state, requests = agent.begin(start)
    while not isinstance(request := requests[0], Finished):
        fact: Fact
        if isinstance(request, GenerateRequest):
            fact = scripted_tokens(request, tokenizer, policy(request, state), version)
        else:
            fact = ToolReplied(call=request.id, result=tools(request))
        state, requests = agent.apply(state, fact)
    return state


def scripted_tokens(
    request: GenerateRequest, tokenizer: Tokenizer, text: str, version: Version = FIRST_VERSION
) -> GeneratedTokens:
    """The fact that a whole call generated `text`, cut at the tokens that it may have."""
    ids = tokenizer.encode(text)
    kept = ids[: request.max_new_tokens]
    return GeneratedTokens(
        request=request.id,
        offset=request.n_held,
        ids=pack_ids(kept),
        logprobs=ZERO_LOGPROB * len(kept),
        versions=(VersionRun(version=version, start=0, end=len(kept)),) if kept else (),
        finish="stop" if len(kept) == len(ids) else "length",
    )
