"""The live screen as text, at two widths and without a terminal."""

import io

import pytest
from rich.console import Console

from actors.cli.marks import clock, histogram, identity_lines, percent, seconds, sparkline
from actors.cli.plain import phase_of, progress_of
from actors.cli.screen import Frame, LiveScreen, final_summary
from actors.cli.session import phases_of
from tests.cli.frames import NOW_NS, busy_frame, folded
from tests.evaluation.stories import Story, two_steps


def drawn(frame: Frame, width: int, encoding: str = "utf-8") -> list[str]:
    """The lines of a frame on a terminal without colour."""
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, newline="\n")
    console = Console(file=file, width=width, height=50, force_terminal=True, no_color=True, color_system=None)
    console.print(LiveScreen(console).render(frame))
    file.flush()
    return buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_accounting_fits_on_its_lines(width: int) -> None:
    lines = drawn(busy_frame(), width)
    assert "requested 20 = graded 15 + dropped 3 + dead 2 + in flight 0" in lines[1]
    assert "graded 15 = counted 11 + discarded 3 + queued 1" in lines[2]
    assert all(len(line) <= width for line in lines)
    assert "✓ ok" in lines[1] and "✓ ok" in lines[2]


def test_everything_is_there_with_its_unit() -> None:
    lines = drawn(busy_frame(), 80)
    text = "\n".join(lines)
    assert len(lines) <= 24, "it must fit a small terminal"
    for part in ("toy-1", "2:05", "step 2/2", "policy 1.2", "searches", "per episode", "1,000 tokens/s", "40 %", "driver 12+34"):
        assert part in text
    assert "0 ▆▆▆ 79 %  1 ▆ 21 %  (steps, bound 4)" in text
    assert "accuracy 0.33 [0.06, 0.79], n 3, 1.00 searches, 0.00 pages each" in text


def test_actors_show_their_state_in_words() -> None:
    rows = {line.split()[0]: line.split() for line in drawn(busy_frame(), 80) if "-0 " in line}
    assert rows["trainer-0"][1:4] == ["ready", "100", "0"]
    assert rows["grader-0"][1:5] == ["not", "running", "-", "3"]
    assert rows["tool-0"][1] == "silent"
    assert rows["driver-0"][1:4] == ["starting", "999", "1"], "the heartbeat of the process before does not count"


def test_a_broken_identity_is_spelled_out() -> None:
    story = two_steps()
    frame = busy_frame(story)
    frame.report.accounts.purposes["train"].requested += 1
    text = "\n".join(drawn(frame, 80))
    assert "✗ BROKEN" in text and "train: requested 15 != graded + dropped + dead + in flight = 14" in text
    assert "BROKEN" in final_summary(frame.report, {})


def test_a_terminal_without_unicode_gets_ascii() -> None:
    for line in drawn(busy_frame(), 80, "ascii"):
        assert line.isascii()


def test_an_empty_run_is_drawn() -> None:
    lines = drawn(Frame(run="toy-1", now_ns=NOW_NS, elapsed_s=1.0, phase="starting the broker"), 80)
    assert "starting the broker" in lines[0]


def test_large_numbers_are_shortened_in_words_not_in_digits() -> None:
    terms = dict.fromkeys(("graded", "dropped", "dead", "in_flight", "counted", "discarded", "queued"), 1234567)
    lines = identity_lines({**terms, "requested": 4 * 1234567}, width=80)
    assert lines[0] == "✓ ok  req 4938268 = grd 1234567 + drp 1234567 + dead 1234567 + fly 1234567"
    assert lines[1].startswith("✗ BROKEN  graded 1234567 = counted")


def test_plain_lines_come_at_each_step_and_each_phase() -> None:
    buffer = io.StringIO()
    screen = LiveScreen(Console(file=buffer, width=80), plain_every_s=5.0)
    story = two_steps()
    frame = busy_frame(story)
    with screen:
        screen.show(Frame(run="r", now_ns=0, elapsed_s=0.0, phase="warm start"))
        screen.show(Frame(run="r", now_ns=0, elapsed_s=1.0, phase="warm start"))
        screen.show(Frame(run="r", now_ns=0, elapsed_s=1.5, phase="broker"))
        screen.show(frame)
        screen.show(frame)
    lines = buffer.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["warm", "broker", "ended,"]
    assert "identities ok" in lines[2] and "engine 1,000 tokens/s" in lines[2]


def test_phases_follow_from_the_facts() -> None:
    story = Story()
    assert phase_of(folded(story)) == "starting"
    story.start()
    story.admit("e-before-0", 0, members=1, purpose="eval", label="before")
    assert (phase_of(folded(story)), progress_of(folded(story))) == ("evaluation before", "step 0/2, 0 questions done")
    story.grade("e-before-0-0", 1.0)
    assert progress_of(folded(story)) == "step 0/2, 1 questions done"
    story.admit("t-0-0", 0)
    assert (phase_of(folded(story)), progress_of(folded(story))) == ("training", "step 0/2")
    story.end("stopped")
    assert (phase_of(folded(story)), progress_of(folded(story))) == ("ended", "step 0/2, stopped")


def test_the_summary_has_every_reason() -> None:
    text = final_summary(folded(two_steps()), {"training": 12.34})
    for part in ("engine_outage 1", "no_progress 2", "no_signal 2", "training 12.3 s", "held out, after:", "2 hops 1.00 (1)"):
        assert part in text


def test_marks() -> None:
    assert sparkline([0.0, None, 0.5, 1.0], 10) == "▁ ▅█"
    assert sparkline([0.0] * 50 + [1.0] * 50, 4) == "▁▁██"
    assert sparkline([0.5], 4, top=1.0, ascii_only=True) == "+"
    assert histogram({}) == "nothing trained yet"
    assert histogram({0: 1, 1: 1, 2: 1, 3: 1}, cells=4, most=2) == "0 ▆ 25 %  1+ ▆▆▆ 75 %"
    assert (percent(None), percent(0.256), seconds(3.21), seconds(75), seconds(600)) == ("-", "26 %", "3.2 s", "75 s", "10 min")
    assert (clock(5), clock(65), clock(3725)) == ("0:05", "1:05", "1:02:05")


def test_a_terminal_is_drawn_in_place() -> None:
    buffer = io.StringIO()
    console = Console(file=buffer, width=80, height=24, force_terminal=True)
    with LiveScreen(console) as screen:
        screen.show(Frame(run="toy-1", now_ns=NOW_NS, elapsed_s=1.0, phase="warm start"))
        screen.show(busy_frame())
    text = buffer.getvalue()
    assert "warm start" in text and "scheduler-0" in text
    assert "\x1b[1A" in text or "\x1b[2K" in text, "the second frame replaces the first"


def test_a_process_without_heartbeats_is_shown_as_running() -> None:
    processes = {"corpus": (7, 0), "tool-0": (8, 0), "driver-0": (None, 0)}
    lines = drawn(Frame(run="r", now_ns=0, elapsed_s=1.0, processes=processes), 80)
    shown = {words[0]: words[1] for line in lines if (words := line.split()) and words[0] in processes}
    assert shown["corpus"] == "running"
    assert shown["tool-0"] == "starting"
    assert shown["driver-0"] == "not"


def test_a_phase_that_nobody_saw_is_told_with_the_others() -> None:
    report = busy_frame().report
    assert "before" in report.accounts.labels
    told = phases_of(report, {"warmstart": 1.04, "start": 2.0, "train": 3.25})
    assert list(told.items()) == [
        *(("warmstart", 1.0), ("start", 2.0), ("eval_before", 0.0), ("train", 3.2)),
        *((f"eval_{label}", 0.0) for label in report.accounts.labels if label != "before"),
        ("stop", 0.0),
    ]
    assert list(phases_of(report, dict.fromkeys(told, 1.0))) == list(told)
