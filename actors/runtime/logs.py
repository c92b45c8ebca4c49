"""Structured logs: one JSON object a line on stderr, which the supervisor appends to the actor's log file."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from actors.runtime.bus import Stored
from asearch.traces.names import trace_id_of


def about(stored: Stored) -> dict[str, str]:
    """What a line says of the stored message that it is about."""
    event, said = stored.event, {"subject": stored.subject}
    if event is not None:
        said["event_id"] = event.id
        if isinstance(episode := getattr(event, "episode", None), str):
            said["episode"] = episode
    return said


def add_trace_id(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """Name the trace of a line about an episode: the same as in OpenTelemetry, whether traces are on or off."""
    run, episode = line.get("run"), line.get("episode")
    if isinstance(run, str) and isinstance(episode, str) and "trace_id" not in line:
        line["trace_id"] = trace_id_of(run, episode)
    return line


def configure_logs(level: int = logging.INFO) -> None:
    """Send structlog and the standard library's loggers to stderr as JSON lines."""
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_trace_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler])
    structlog.configure(
        processors=[*first, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
