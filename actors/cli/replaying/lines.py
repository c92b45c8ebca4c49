"""Lines of a run's archive: each read, checked byte by byte, and its episode replayed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import xxhash

from actors.runtime.archive import EpisodeNames
from actors.runtime.episode_lines import EpisodeLineError, damaged, decode_episode, episode_named
from asearch.agents.episode import Agent
from asearch.configuration.settings import Settings
from asearch.errors import InputError
from asearch.traces.record import EpisodeRecord, payloads_of, record_of
from asearch.traces.replay import replay
from asearch.traces.verdicts import Difference, Verdict, damaged_facts, shown
from schemas.archive import BLOBS, EPISODES, OUTCOMES, decode_outcome
from schemas.records import AnswerKey

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Parts(msgspec.Struct):
    """A line of either file as far as both have it in common."""

    sequence: int
    outcome: msgspec.Raw = msgspec.Raw(b"null")


_parts = msgspec.json.Decoder(_Parts)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of every line, its end included; none where there is no such file."""
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except FileNotFoundError:
        return


def of_line(episode: str, path: Path, number: int, field: str, recorded: str, replayed: str) -> Difference:
    """A difference of a whole line."""
    return Difference(
        episode=episode,
        fact=None,
        type="line",
        id=f"{path.name}:{number}" if number else path.name,
        field=field,
        recorded=shown(recorded),
        replayed=shown(replayed),
    )


@dataclass(kw_only=True)
class ArchiveReader:
    """Reads episodes from the archive in `folder`. `has_ended`: its recorder is gone, so that nothing may be half written."""

    folder: Path
    has_ended: bool = False
    bad_blobs: set[str] = field(default_factory=set[str])
    """Names of payload files that were found changed."""

    def read(self, number: int, line: bytes) -> EpisodeRecord | Verdict:
        """The record of a line; for one that cannot be read a verdict on what can be told of it. `number` 0: not known."""
        path = self.folder / EPISODES
        name = episode_named(line)
        try:
            damage = damaged(line)
        except EpisodeLineError as error:
            found = of_line(name, path, number, "line", _beginning(line), str(error))
            return _lost(name, [found])
        try:
            entry = decode_episode(line)
        except EpisodeLineError as error:
            unread = of_line(name, path, number, "line", _beginning(line), str(error))
            return _lost(name, [*damaged_facts(name, damage), unread])
        payloads = self.payloads([ref.hash for ref in payloads_of(list(entry.facts))])
        sequences = entry.sequences or [0] * len(entry.facts)
        name = entry.outcome.episode
        if name != entry.episode:
            # The name at the head is under no checksum; the outcome is.
            name = entry.episode if any(each.startswith("the outcome") for each in damage) else name
            damage = damage or [f"the episode's name, which is {entry.episode!r} at the head of its line"]
        return record_of(name, list(entry.facts), sequences, entry.outcome, payloads, damage)

    def payloads(self, hashes: list[str]) -> dict[str, bytes]:
        """The archived payloads of these names, as they are now."""
        found: dict[str, bytes] = {}
        for name in hashes:
            try:
                found[name] = (self.folder / BLOBS / Path(name).name).read_bytes()
            except OSError:
                continue
            if xxhash.xxh3_128_hexdigest(found[name]) != name:
                self.bad_blobs.add(name)
        return found

    def other_blobs(self) -> Iterator[Difference]:
        """Payloads whose bytes are not those of their name, and that no fact has been found to differ for."""
        folder = self.folder / BLOBS
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name in self.bad_blobs or path.name.startswith("."):
                continue
            actual = xxhash.xxh3_128_hexdigest(path.read_bytes())
            if actual != path.name:
                yield Difference(
                    episode="", fact=None, type="blob", id=path.name, field="bytes", recorded=path.name, replayed=actual
                )


@dataclass(kw_only=True)
class Replayer(ArchiveReader):
    """Judges episodes of one run; those whose answer key is known with their rewards."""

    agent: Agent
    settings: Settings
    keys: dict[str, AnswerKey] = field(default_factory=dict[str, AnswerKey])

    def judge(self, record: EpisodeRecord) -> Verdict:
        """Replay one episode."""
        return replay(record, self.agent, self.settings.agent, self.keys.get(task_of(record)), self.settings.rewards.config())

    def line(self, number: int, line: bytes) -> Verdict:
        """Judge the episode of a line of `episodes.jsonl`."""
        read = self.read(number, line)
        return read if isinstance(read, Verdict) else self.judge(read)


def task_of(record: EpisodeRecord) -> str:
    """The task of an episode; empty where nothing tells it."""
    if record.request is not None:
        return record.request.task.id
    return record.outcome.task if record.outcome is not None else ""


def _lost(name: str, differences: list[Difference]) -> Verdict:
    return Verdict(episode=name, n_facts=0, partial=True, graded=False, differences=differences)


def _beginning(line: bytes) -> str:
    return line[:80].decode(errors="replace")


class OutcomeLines:
    """What `outcomes.jsonl` says, to be compared with the outcomes in `episodes.jsonl`: both are the same bytes."""

    def __init__(self, folder: Path, *, has_ended: bool) -> None:
        self.path = folder / OUTCOMES
        self.differences: list[Difference] = []
        self._has_ended = has_ended
        self._digests: dict[int, int] = {}
        """Of the outcome's JSON, by sequence."""
        last = 0
        for number, line in lines_of(self.path):
            if not line.endswith(b"\n") and not has_ended:
                continue
            last = self._read(number, line, last)

    def _read(self, number: int, line: bytes, last: int) -> int:
        try:
            if not line.endswith(b"\n"):
                raise InputError("the line has no end")
            parts, entry = _parts.decode(line), decode_outcome(line)
            if entry.outcome is None and entry.data is None:
                raise InputError("it holds neither an outcome nor what is none")
        except (*UNREADABLE, InputError) as error:
            self.differences.append(of_line("", self.path, number, "line", _beginning(line), str(error)))
            return last
        if parts.sequence <= last:
            self.differences.append(of_line("", self.path, number, "sequence", str(parts.sequence), f"above {last}"))
        if bytes(parts.outcome) != b"null":
            self._digests[parts.sequence] = xxhash.xxh3_64_intdigest(bytes(parts.outcome))
        return parts.sequence

    def compare(self, number: int, line: bytes) -> list[Difference]:
        """How the outcome of a line of `episodes.jsonl` differs from its line here."""
        try:
            parts = _parts.decode(line)
        except UNREADABLE:
            return []
        outcome = bytes(parts.outcome)
        digest = self._digests.pop(parts.sequence, None)
        if digest == xxhash.xxh3_64_intdigest(outcome):
            return []
        if digest is None and not self._has_ended:
            return []
        told = "no line has this sequence" if digest is None else "another outcome stands there"
        place = f"sequence {parts.sequence} (line {number} of {EPISODES})"
        return [
            Difference(
                episode=episode_named(line),
                fact=None,
                type="outcome",
                id=OUTCOMES,
                field="outcome",
                recorded=place,
                replayed=told,
            )
        ]

    def left(self, names: EpisodeNames) -> Iterator[str]:
        """Episodes whose outcomes are archived without them."""
        if not self._digests:
            return
        for _, line in lines_of(self.path):
            try:
                entry = decode_outcome(line)
            except UNREADABLE:
                continue
            if entry.sequence in self._digests and entry.outcome is not None and entry.outcome.episode not in names:
                yield entry.outcome.episode
