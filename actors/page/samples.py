"""What passes and is in no stream: rates, ages and queues, sampled while the viewer lives and kept in a file of the run."""

from pathlib import Path
from typing import Any

import msgspec

from actors.runtime.following import View

SAMPLE_S = 2.0
MAX_SAMPLES = 3600
FILE = "samples.jsonl"


def sample_of(view: View, now_ns: int) -> dict[str, Any]:
    """The moment: rates per second, ages in seconds, queue depths, tool errors, drops by reason so far."""
    report, vitals = view.report, view.vitals
    opened, queued = (None if at is None else round(max(0.0, (now_ns - at) / 1e9), 2) for at in report.oldest_ns())
    terms = report.accounts.all_terms()
    tools = [heartbeat.gauges for heartbeat in vitals.latest.values() if heartbeat.actor == "tool"]
    n_calls = sum(gauges.get("n_calls", 0.0) for gauges in tools)
    return {
        "at_ns": now_ns,
        "engine_tokens_per_s": _rounded(vitals.total_rate("engine", "n_tokens")),
        "trainer_tokens_per_s": _rounded(vitals.total_rate("trainer", "n_tokens")),
        "episodes_per_s": _rounded(vitals.total_rate("recorder", "n_archived")),
        "open_s": opened,
        "queued_s": queued,
        "in_flight": terms["in_flight"],
        "tool_call_s": sum(g.get("call_s", 0.0) * g.get("n_calls", 0.0) for g in tools) / n_calls if n_calls else None,
        "tool_calls_per_s": _rounded(vitals.total_rate("tool", "n_calls")),
        "tool_errors_per_s": _rounded(vitals.total_rate("tool", "n_errors")),
        "dropped": report.reasons()["dropped"],
        "queues": {name: info.n_pending + info.n_ack_pending for name, info in view.queues.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


class Samples:
    """At most MAX_SAMPLES; of a longer run every second one goes, again and again, so that the whole run stays in view."""

    def __init__(self, run_dir: Path, *, keeps: bool = True) -> None:
        """With `keeps`, what is added is appended to the file too: one process a run may do that."""
        self._path = run_dir / FILE
        self._keeps = keeps
        self.kept: list[dict[str, Any]] = []
        self.every = 1
        """Of how many samples one is kept."""
        self._n = 0

    def read(self) -> None:
        """Take in what an earlier life of the viewer has kept."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                self.kept.append(msgspec.json.decode(line))
            except msgspec.DecodeError:
                continue
        self._thin()

    def add(self, sample: dict[str, Any]) -> None:
        """Take a sample; a file that cannot be written is done without."""
        self._n += 1
        if self._n % self.every:
            return
        self.kept.append(sample)
        is_full = len(self.kept) > MAX_SAMPLES
        self._thin()
        if not self._keeps:
            return
        try:
            if is_full:
                self._path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in self.kept))
            else:
                with self._path.open("ab") as file:
                    file.write(msgspec.json.encode(sample) + b"\n")
        except OSError:
            return

    def _thin(self) -> None:
        while len(self.kept) > MAX_SAMPLES:
            self.kept = self.kept[::2]
            self.every *= 2
