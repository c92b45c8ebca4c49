"""Identities and headers: every process comes to the same ones by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from actors.runtime.logs import add_trace_id
from actors.runtime.tracing import (
    SpanContext,
    chat_context,
    context_of,
    episode_context,
    parent_of,
    step_context,
    trace_id,
    turn_context,
)
from schemas.commands import Generate, GenerationChunk, Heartbeat, ToolReply
from schemas.events import ToolRequested
from schemas.records import Column, ToolResult, Version

EPISODE = "t-3-0-1"


def test_identities_are_those_of_earlier_versions() -> None:
    """A run goes on with newer code: its traces must not fall apart."""
    assert f"{trace_id('r', EPISODE):032x}" == "8ccbb9757ba07a17499deef3ae6d5af9"
    assert f"{episode_context('r', EPISODE).span_id:016x}" == "d00e345099abbe6f"
    assert f"{turn_context('r', EPISODE, 2).span_id:016x}" == "a7f6202fee4a8cb9"
    assert f"{chat_context('r', EPISODE, f'{EPISODE}:g2').span_id:016x}" == "5540c8a74a89b88a"


def test_identities_differ() -> None:
    contexts = [episode_context("r", EPISODE), turn_context("r", EPISODE, 1), turn_context("r", EPISODE, 2)]
    contexts += [chat_context("r", EPISODE, f"{EPISODE}:g1"), episode_context("r", "t-3-0-2"), episode_context("s", EPISODE)]
    contexts.append(step_context("r", "policy", Version(lineage=1, step=0)))
    assert len({context.span_id for context in contexts[:4]}) == 4
    assert len({context.trace_id for context in (contexts[0], *contexts[4:])}) == 4


def test_header_names_the_span_that_something_is_said_under() -> None:
    prompt = Column(dtype="u4", shape=(0,), data=b"")
    ask = f"{EPISODE}:g2/life/7"
    generate = Generate(request=ask, episode=EPISODE, prompt=prompt, stop=[], max_new_tokens=1, temperature=1.0, reply_to="x")
    chat = chat_context("r", EPISODE, f"{EPISODE}:g2")
    assert context_of("r", generate) == chat
    assert context_of("r", GenerationChunk(request=ask, offset=0, columns={}, versions=[], engine="engine-0")) == chat
    requested = ToolRequested(
        id="x", at_ns=1, episode=EPISODE, call=f"{EPISODE}:t2", turn=2, tool="search", argument="", task="", member=1, reply_to=""
    )
    assert context_of("r", requested) == turn_context("r", EPISODE, 2)
    reply = ToolReply(episode=EPISODE, call=f"{EPISODE}:t2", result=ToolResult())
    assert context_of("r", reply) == episode_context("r", EPISODE)
    assert context_of("r", Heartbeat(actor="tool", actor_id="tool-0", pid=1, at_ns=1, state="ready")) is None


def test_a_header_goes_before_what_is_known() -> None:
    known, foreign = SpanContext(1, 2), SpanContext(0xABC, 0xDEF)
    assert parent_of(foreign.traceparent(), known) == foreign
    assert parent_of(foreign.traceparent(sampled=False), known) == foreign


@pytest.mark.parametrize(
    "header", [None, "", "00-aa-bb-01", f"00-{0:032x}-{1:016x}-01", f"00-{1:032x}-{0:016x}-01", f"ff-{1:032x}-{1:016x}-01"]
)
def test_a_header_that_names_nothing_is_passed_over(header: str | None) -> None:
    assert parent_of(header, SpanContext(1, 2)) == SpanContext(1, 2)


def test_lines_about_an_episode_name_its_trace() -> None:
    logger = structlog.get_logger()
    line = add_trace_id(logger, "info", {"event": "x", "run": "r", "episode": EPISODE})
    assert line["trace_id"] == f"{trace_id('r', EPISODE):032x}"
    assert "trace_id" not in add_trace_id(logger, "info", {"event": "x", "run": "r"})
    assert "trace_id" not in add_trace_id(logger, "info", {"event": "x", "episode": EPISODE})


def test_nothing_of_opentelemetry_is_imported_where_tracing_is_off() -> None:
    code = (
        "import json, sys\n"
        "import actors.cli.actor, actors.scheduler, actors.driver, actors.engine, actors.tool, actors.grader, actors.recorder\n"
        "from actors.runtime.otlp import tracing_of\n"
        "from actors.runtime.tracing import NO_TRACING\n"
        "assert tracing_of('tool', 'tool-0', 'r', {}) is NO_TRACING\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []


def test_the_log_of_an_actor_names_traces() -> None:
    code = (
        "import structlog\n"
        "from actors.runtime.logs import configure_logs\n"
        "configure_logs()\n"
        "structlog.contextvars.bind_contextvars(run='r')\n"
        f"structlog.get_logger().info('said', episode='{EPISODE}', event_id='x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    line = json.loads(done.stderr)
    assert (line["trace_id"], line["event_id"]) == (f"{trace_id('r', EPISODE):032x}", "x")


def test_lines_of_the_standard_librarys_loggers_are_json_too() -> None:
    code = (
        "import logging, structlog\n"
        "from actors.runtime.logs import configure_logs\n"
        "configure_logs()\n"
        "structlog.contextvars.bind_contextvars(run='r', actor='a')\n"
        "logging.getLogger('named').warning('said %s', 'a \"quoted\"\\nword')\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('named').exception('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (said["event"], said["logger"], said["level"], said["run"]) == ('said a "quoted"\nword', "named", "warning", "r")
    assert "timestamp" in said
    assert "ZeroDivisionError" in failed["exception"]


def test_a_run_refuses_an_environment_that_cannot_be_obeyed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--runs", str(tmp_path), "--run", "r"]
    environment = os.environ | {"OTEL_TRACES_EXPORTER": "zipkin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    assert "OTEL_TRACES_EXPORTER" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "run.json").exists()
