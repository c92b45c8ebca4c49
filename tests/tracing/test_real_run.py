"""A real training with a real receiver: its processes make one connected tree of every episode."""

import os
import subprocess
import sys

import pytest

from tests.tracing.receiver import Received, Receiver, receiving

SETTINGS = (
    *("warmstart.steps=40", "warmstart.tokens_per_step=2048", "world.entities=16", "run.groups_per_step=3"),
    *("run.group_size=6", "run.max_refills=6", "rewards.name=f1", "evaluation.questions=3", "evaluation.before=false"),
)
STEPS = 2


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Receiver:
    """What a receiver got of a run."""
    folder = tmp_path_factory.mktemp("traced")
    options = [part for setting in SETTINGS for part in ("-s", setting)]
    command = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--runs", str(folder), "--run", "traced"]
    with receiving() as receiver:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRICS_EXPORTER": "none", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--steps", str(STEPS), "--seed", "1", "--json", *options],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return receiver


@pytest.fixture(scope="module")
def episodes(traced: Receiver) -> dict[str, list[Received]]:
    """The traces of episodes."""
    return {name: spans for name, spans in traced.traces().items() if not any("train step" in span.name for span in spans)}


def test_every_trace_is_one_connected_tree(episodes: dict[str, list[Received]]) -> None:
    assert len(episodes) >= STEPS * 18
    for spans in episodes.values():
        ids = {span.id for span in spans}
        assert [span.name for span in spans if not span.parent] == ["invoke_agent asearcher_base"]
        assert [span.name for span in spans if span.parent and span.parent not in ids] == []


def test_at_least_five_processes_have_part_in_one_tree(episodes: dict[str, list[Received]]) -> None:
    processes = [{span.pid for span in spans if span.pid is not None} for spans in episodes.values()]
    assert max(map(len, processes)) >= 5
    widest = max(episodes.values(), key=lambda spans: len({span.pid for span in spans}))
    assert {"scheduler-0", "driver-0", "engine-0", "tool-0", "grader-0"} <= {span.actor for span in widest}
    parents = {span.id: span for span in widest}
    for name, over in (
        ("generate", "chat"),
        ("chat", "turn"),
        ("execute_tool", "turn"),
        ("turn", "invoke_agent"),
        ("grade", "invoke"),
    ):
        found = [span for span in widest if span.name.startswith(name)]
        assert found and all(parents[span.parent].name.startswith(over) for span in found), name


def test_times_of_children_lie_within_their_parents(episodes: dict[str, list[Received]]) -> None:
    """One machine, one clock; an engine may say last that it is done."""
    early_ns, late_ns = 50_000_000, 2_000_000_000
    for spans in episodes.values():
        parents = {span.id: span for span in spans}
        for span in spans:
            if span.parent and not span.name.startswith(("drive", "grade")):
                over = parents[span.parent]
                assert over.start_ns - early_ns <= span.start_ns and span.end_ns <= over.end_ns + late_ns, (span, over)


def test_a_training_step_names_the_episodes_that_it_used(traced: Receiver, episodes: dict[str, list[Received]]) -> None:
    roots = {(span.trace, span.id) for spans in episodes.values() for span in spans if not span.parent}
    steps = [span for span in traced.spans if span.name.startswith("train step")]
    assert [span.name for span in steps] == [f"train step {number}" for number in range(STEPS)]
    trained = [span for span in steps if not span.attributes["asearch.empty"]]
    assert trained
    assert all(span.links and set(span.links) <= roots for span in trained)


def test_spans_speak_the_conventions_of_generative_ai(episodes: dict[str, list[Received]]) -> None:
    spans = [span for several in episodes.values() for span in several]
    operations = {span.attributes.get("gen_ai.operation.name") for span in spans}
    assert {"invoke_agent", "chat", "execute_tool"} <= operations
    chat = next(span for span in spans if span.name == "chat policy")
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert chat.attributes["gen_ai.response.model"].startswith("policy@1.")
    served = next(span for span in spans if span.name == "generate")
    assert served.attributes["gen_ai.usage.input_tokens"] > 0
