"""The head of an episode for people: what it is, how it ended, what became of it; and how times and durations are written."""

from datetime import UTC, datetime
from typing import Any

from asearch.traces.rows import EpisodeRow
from asearch.traces.story import Item
from asearch.traces.told import ToldEpisode


def utc(at_ns: int) -> str:
    """A time as `2026-11-21 15:24:29.288Z`; empty for 0."""
    if not at_ns:
        return ""
    return datetime.fromtimestamp(at_ns // 1_000_000 / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def since(at_ns: int, begin_ns: int) -> str:
    """How long after the beginning: `+1.234 s`."""
    return f"+{max(0, at_ns - begin_ns) / 1e9:.3f} s" if at_ns and begin_ns else ""


def duration(elapsed_ns: int) -> str:
    """A duration in milliseconds or seconds; empty for 0."""
    if not elapsed_ns:
        return ""
    return f"{elapsed_ns / 1e6:.1f} ms" if elapsed_ns < 1e9 else f"{elapsed_ns / 1e9:.2f} s"


def counted(n: int, one: str, many: str = "") -> str:
    """`1 token`, `2 tokens`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def head_of(episode: ToldEpisode) -> list[tuple[str, str]]:
    """Names and texts of what stands above the story, in order. The texts are as they were recorded: escape them."""
    row = episode.row
    answers = "not known: the broker's store is gone" if episode.key is None else " | ".join(_answers(episode))
    lines = [
        ("question", row.question),
        ("gold answers", answers),
        ("answer", "(none)" if row.answer is None else row.answer),
        ("state", state_of(row)),
        ("fate", fate_of(row)),
        ("task", " ".join(part for part in (row.task, f"({row.hops} hops)" if row.hops else "", row.purpose, row.label) if part)),
        ("group", f"{row.group}, member {row.member}, slot {row.slot}, refill {row.refill}, attempt {row.attempt}"),
        ("size", _size(row)),
        ("requested", f"{utc(row.requested_ns)} at policy step {row.progress}"),
        ("ended", f"{utc(row.ended_ns)} ({since(row.ended_ns, row.requested_ns)})" if row.ended_ns > 1 else "not yet"),
        ("oldest version", row.version),
        ("trace id", episode.trace_id),
    ]
    return [(name, text) for name, text in lines if text]


def _answers(episode: ToldEpisode) -> list[str]:
    return [] if episode.key is None else [*episode.key.answers, *episode.key.aug_answers]


def _size(row: EpisodeRow) -> str:
    parts = [counted(row.n_turns, "turn"), counted(row.n_searches, "search", "searches"), counted(row.n_reads, "page")]
    return ", ".join([*parts, counted(row.n_tokens, "token") + " generated"])


def state_of(row: EpisodeRow) -> str:
    """Where it is, or how it ended."""
    if row.stage == "graded":
        verdict = "right" if row.correct else "wrong"
        return f"graded: {row.ending}, reward {row.reward:g}, {verdict}" if row.reward is not None else "graded"
    if row.stage in ("dropped", "dead"):
        return f"{row.stage}: {row.reason}"
    return f"{row.stage}{', held by ' + row.driver if row.driver else ''}"


def fate_of(row: EpisodeRow) -> str:
    """What the trainer made of it."""
    if not row.fate:
        return ""
    if row.step is None:
        return "counted (no trainer decides over it)" if row.fate == "counted" else row.fate
    why = f" ({row.reason})" if row.reason else ""
    return f"{row.fate}{why} at policy step {row.step}"


def versions_of(item: Item) -> str:
    """The versions of a generation by token: `1.3 [0, 12), 1.4 [12, 20)`."""
    return ", ".join(f"{run['version']} [{run['start']}, {run['end']})" for run in item["versions"])


def title_of(item: Item) -> str:
    """One item in a few words, without what pages and policy wrote."""
    match item["kind"]:
        case "taken":
            return f"taken by {item['driver']}, attempt {item['attempt']}"
        case "generation":
            return _generation(item)
        case "called":
            return f"calls {item['tool']}"
        case "returned":
            return _returned(item)
        case "shown":
            n = sum(piece["n_tokens"] for piece in item["pieces"])
            return f"shown to the policy: {counted(n, 'token')}"
        case "deadline":
            return "the deadline is near: its next generation is the forced answer"
        case "finished":
            parts = [item["status"], counted(item["n_turns"], "turn"), counted(item["n_tokens"], "token")]
            return ", ".join(["finished: " + parts[0], *parts[1:], duration(item["elapsed_ns"])])
        case "outcome":
            return f"outcome: {item['outcome']}"
        case kind:
            return str(kind)


def _generation(item: Item) -> str:
    how = " its notes on what it reads" if item["reads"] else " the forced answer" if item["forced"] else ""
    parts = [counted(item["n"], "token"), duration(item["elapsed_ns"]), item["engine"], f"version {versions_of(item)}"]
    if item["n_prompt"] is not None:
        parts.append(f"prompt {counted(item['n_prompt'], 'token')}")
    if item["finish"] is None:
        parts.append("not complete")
    elif item["finish"] != "stop":
        parts.append(f"ended by {item['finish']}")
    if item["n_asked"] > 1:
        parts.append(f"asked for {item['n_asked']} times")
    return f"writes{how}: " + ", ".join(part for part in parts if part)


def _returned(item: Item) -> str:
    took = f" after {duration(item['elapsed_ns'])}" if item["elapsed_ns"] else ""
    if item["error"] is not None:
        return f"failed{took}: {item['error']}"
    return f"{counted(len(item['documents']), 'document')}{took}"


def shortening_of(item: Item, sizes: dict[int, int]) -> str:
    """Which tool texts memory no longer holds in full; `sizes` gives the tokens of each piece that was shown."""
    lost = [f"{sizes[index]:,} tokens" if index in sizes else "a text" for index in item.get("shortened", ())]
    return f"memory now holds a short form of what was shown before ({', '.join(lost)})" if lost else ""


def parts_of(item: Item) -> list[tuple[str, Any]]:
    """The outcome of an episode, line by line."""
    if item["outcome"] != "graded":
        return [("reason", item["reason"]), ("message", item["message"])]
    lines: list[tuple[str, Any]] = [("reward", f"{item['reward']:g}")]
    for part in item["parts"]:
        where = f" on {part['segment']} [{part['start']}, {part['end']})" if part["segment"] else ""
        lines.append((f"  {part['name']}", f"{part['value']:g} x weight {part['weight']:g}{where}"))
    lines.extend((("correct", "yes" if item["correct"] else "no"), ("status", item["status"]), ("answer", item["answer"])))
    return lines
