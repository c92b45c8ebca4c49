"""Spans that actors report of their own work: leaves of an episode's trace, and the trace of a training step.

Names and `gen_ai.*` attributes are those of OpenTelemetry's semantic conventions for generative AI; what these have no name
for is `asearch.*`. No text of prompts, pages or answers is in them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actors.runtime.tracing import (
    PROVIDER,
    Attributes,
    Span,
    SpanContext,
    SpanLink,
    asked_for,
    chat_context,
    episode_context,
    parent_of,
    span_id,
    step_context,
    turn_context,
)
from asearch.engines.client import GeneratedChunk
from schemas.commands import Generate
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, EpisodeRequested, Outcome, StepTrained, ToolRequested
from schemas.records import ToolResult, Version

MAX_ERROR_CHARS = 300


def _leaf(
    name: str,
    parent: SpanContext,
    names: tuple[str | int, ...],
    times: tuple[int, int],
    attributes: Attributes,
    error: str | None = None,
) -> Span:
    return Span(
        name=name,
        context=SpanContext(parent.trace_id, span_id(*names)),
        parent=parent,
        start_ns=times[0],
        end_ns=max(times),
        attributes=attributes,
        error=error[:MAX_ERROR_CHARS] if error is not None else None,
    )


def request_span(run: str, request: EpisodeRequested, end_ns: int) -> Span:
    """The scheduler has asked for an episode; ends when the request is stored."""
    attributes: Attributes = {
        "asearch.episode": request.episode,
        "asearch.group": request.group,
        "asearch.purpose": request.purpose,
        "asearch.progress": request.progress,
        "asearch.attempt": request.attempt,
        "asearch.event_id": request.id,
    }
    names = (request.id, "request")
    return _leaf(
        "request episode", episode_context(run, request.episode), names, (min(request.at_ns, end_ns), end_ns), attributes
    )


def drive_span(run: str, request: EpisodeRequested, driver: str, times: tuple[int, int], n_facts: int, error: str | None) -> Span:
    """A driver has held an episode, to its end or until it let go of it."""
    attributes: Attributes = {
        "asearch.episode": request.episode,
        "asearch.driver": driver,
        "asearch.attempt": request.attempt,
        "asearch.n_facts": n_facts,
    }
    names = (request.id, "drive", driver, times[0])
    return _leaf("drive episode", episode_context(run, request.episode), names, times, attributes, error)


@dataclass
class Served:
    """What an engine has done of one request so far."""

    start_ns: int
    traceparent: str | None
    n_tokens: int = 0
    first_ns: int = 0
    finish: str | None = None
    version: str | None = None
    error: str | None = None

    def took(self, chunk: GeneratedChunk, at_ns: int) -> None:
        """Count what a chunk brought."""
        self.n_tokens += len(chunk.ids)
        self.first_ns = self.first_ns or at_ns
        self.finish = chunk.finish or self.finish
        if chunk.versions:
            self.version = chunk.versions[-1].version


def generate_span(run: str, command: Generate, served: Served, end_ns: int) -> Span:
    """An engine has served a request.

    It has no `gen_ai.operation.name`: the driver's `chat` is the inference, and its tokens must not be summed twice.
    """
    parent = parent_of(served.traceparent, chat_context(run, command.episode, asked_for(command.request)))
    attributes: Attributes = {
        "gen_ai.conversation.id": command.episode,
        "gen_ai.response.id": command.request,
        "gen_ai.request.max_tokens": command.max_new_tokens,
        "gen_ai.request.temperature": command.temperature,
        "gen_ai.request.top_p": command.top_p,
        "gen_ai.usage.input_tokens": command.prompt.shape[0] if command.prompt.shape else 0,
        "gen_ai.usage.output_tokens": served.n_tokens,
        "asearch.min_step": command.min_step,
    }
    if command.seed is not None:
        attributes["gen_ai.request.seed"] = command.seed
    if command.top_k > 0:
        attributes["gen_ai.request.top_k"] = command.top_k
    if served.finish is not None:
        attributes["gen_ai.response.finish_reasons"] = [served.finish]
    if served.version is not None:
        attributes["asearch.policy_version"] = served.version
    if served.first_ns:
        attributes["gen_ai.response.time_to_first_chunk"] = (served.first_ns - served.start_ns) / 1e9
    return Span(
        name="generate",
        context=SpanContext(parent.trace_id, span_id(command.request, "generate")),
        parent=parent,
        start_ns=served.start_ns,
        end_ns=max(served.start_ns, end_ns),
        kind="server",
        attributes=attributes,
        error=served.error,
    )


def tool_span(
    run: str, event: ToolRequested, traceparent: str | None, actor_id: str, times: tuple[int, int], result: ToolResult
) -> Span:
    """A tool call was carried out; a call that ran twice has two."""
    attributes: Attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": event.tool,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": event.call,
        "gen_ai.conversation.id": event.episode,
        "asearch.turn": event.turn,
        "asearch.n_documents": len(result.documents),
        "asearch.event_id": event.id,
    }
    if result.error is not None:
        attributes["error.type"] = result.error
    parent = parent_of(traceparent, turn_context(run, event.episode, event.turn))
    names = (event.call, "tool", actor_id, times[0])
    return _leaf(f"execute_tool {event.tool}", parent, names, times, attributes, result.error)


def grade_span(run: str, outcome: Outcome, traceparent: str | None, actor_id: str, times: tuple[int, int], *, won: bool) -> Span:
    """A grader has come to an outcome. `won`: it is the one that was stored."""
    attributes: Attributes = {
        "gen_ai.conversation.id": outcome.episode,
        "asearch.group": outcome.group,
        "asearch.event_id": outcome.id,
        "asearch.stored": won,
    }
    error = None
    if isinstance(outcome, EpisodeGraded):
        attributes["gen_ai.evaluation.name"] = "reward"
        attributes["gen_ai.evaluation.score.value"] = outcome.reward.value
        attributes["asearch.correct"] = outcome.correct
    elif isinstance(outcome, EpisodeDropped | EpisodeDead):
        attributes["error.type"] = error = outcome.reason
    parent = parent_of(traceparent, episode_context(run, outcome.episode))
    return _leaf("grade", parent, (outcome.id, "grade", actor_id, times[0]), times, attributes, error)


def step_span(run: str, trained: StepTrained, episodes: Iterable[EpisodeGraded], start_ns: int) -> Span:
    """A training step, linked to the root spans of the episodes that it was trained on."""
    attributes: Attributes = {
        "gen_ai.request.model": trained.model,
        "gen_ai.provider.name": PROVIDER,
        "asearch.step": trained.step,
        "asearch.policy_version": f"{trained.lineage}.{trained.step}",
        "asearch.empty": trained.empty,
        "asearch.n_tokens_trained": trained.n_tokens_trained,
        "asearch.n_tokens_masked_stale": trained.n_tokens_masked_stale,
        "asearch.n_tokens_discarded": trained.n_tokens_discarded,
        "asearch.staleness": max(trained.staleness, default=0),
        "asearch.n_groups_counted": sum(verdict.reason is None for verdict in trained.verdicts),
        "asearch.n_groups_discarded": sum(verdict.reason is not None for verdict in trained.verdicts),
        "asearch.update_s": trained.elapsed_ns / 1e9,
        "asearch.idle_s": trained.idle_ns / 1e9,
        "asearch.event_id": trained.id,
    }
    return Span(
        name=f"train step {trained.step}",
        context=step_context(run, trained.model, Version(lineage=trained.lineage, step=trained.step)),
        start_ns=min(start_ns, trained.at_ns),
        end_ns=max(start_ns, trained.at_ns),
        attributes=attributes,
        links=[SpanLink(episode_context(run, each.episode), _of_trained(each, trained.step)) for each in episodes],
    )


def _of_trained(outcome: EpisodeGraded, step: int) -> Attributes:
    attributes: Attributes = {
        "asearch.episode": outcome.episode,
        "asearch.group": outcome.group,
        "asearch.reward": outcome.reward.value,
    }
    if outcome.oldest is not None:
        attributes["asearch.staleness"] = step - outcome.oldest.step
    return attributes
