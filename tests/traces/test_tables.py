"""The tables of an archive: documented, written in bounded parts, put in place whole or not at all."""

import subprocess
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from pyarrow import parquet

from asearch.errors import ConfigError
from asearch.traces import tables
from asearch.traces.dataset import by_task, dpo_row, pairs
from asearch.traces.ended import EndedEpisode, episode_row, segment_rows, step_row, turn_rows
from asearch.traces.parquet import ParquetFiles, SecondWriterError
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import EpisodeRow, RowTable
from asearch.traces.tables import DATASETS, DOCUMENT, EPISODES, SEGMENTS, STEPS, TABLES, TURNS, document, need_parquet
from asearch.traces.turns import FoldedEpisode, turns_of
from schemas.events import GroupVerdict, StepTrained
from schemas.records import Column, TrainedEpisode, TrainedSegment
from tests.traces.told import told, turn

FOUND = ("w/Ada", "Ada was born in Lima.")
RECORD = told(turn("so </think> <search> Ada </search>", FOUND), turn("it is </think> <answer> Lima </answer>"), answer="Lima")


def ended(record: EpisodeRecord = RECORD) -> EndedEpisode:
    assert record.outcome is not None
    row = RowTable().ended_row(record.outcome, [record.request] if record.request else [])
    return EndedEpisode(record, row, 9, FoldedEpisode(turns_of(record), None))


def test_document_in_the_repository_is_what_is_generated() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m asearch.traces.tables"


@pytest.mark.parametrize("table", [*TABLES.values(), *DATASETS.values()], ids=lambda table: table.name)
def test_schema_says_what_every_column_means(table: tables.TableSpec) -> None:
    schema = tables.arrow_schema(table, {"asearch.run": "r"})
    assert schema.names == table.names
    assert len(set(table.names)) == len(table.names)
    assert all(schema.field(column.name).metadata[b"meaning"].decode() == column.meaning for column in table.columns)
    assert schema.metadata[b"asearch.run"] == b"r"


def test_rows_have_the_columns_of_their_tables() -> None:
    verdicts = [GroupVerdict(group="a", episodes=4), GroupVerdict(group="b", episodes=2, reason="no_signal")]
    step = StepTrained(
        id="s", model="policy", lineage=2, step=3, verdicts=verdicts, staleness={0: 10, 2: 30}, n_tokens_trained=40,
        n_tokens_masked_stale=1, n_tokens_discarded=2, empty=False, metrics={"loss": 0.5}, elapsed_ns=2_000_000_000,
    )  # fmt: skip
    row = step_row(step, abandoned=True)
    assert set(row) == set(STEPS.names)
    assert (row["version"], row["n_episodes_counted"], row["n_episodes_discarded"]) == ("2.4", 4, 2)
    assert (row["staleness_max"], row["staleness_mean"], row["train_s"]) == (2, 1.5, 2.0)
    assert set(episode_row("r", ended())) == set(EPISODES.names)
    assert all(set(row) == set(TURNS.names) for row in turn_rows(ended()))
    assert set(EpisodeRow.__struct_fields__) <= set(EPISODES.names), "every field of a list's row is a column"


def test_row_of_an_episode_says_what_its_facts_say() -> None:
    row = episode_row("r", ended())
    assert (row["outcome"], row["ending"], row["answer"], row["reward"]) == ("graded", "answered", "Lima", 1.0)
    assert (row["generation_s"], row["tool_s"], row["elapsed_s"]) == (4.0, 0.5, 5.0)
    assert (row["taken_ns"], row["finished_ns"], row["ended_ns"]) == (2, 50, 60)
    assert (row["versions"], row["engines"], row["driver"]) == (["1.0", "1.1"], ["engine-0"], "driver-0")
    assert row["trace_id"] == xxhash.xxh3_128_hexdigest(b"r/t-0-0-0")
    first, last = turn_rows(ended())
    assert (first["kind"], first["thought"], first["tool"], first["argument"]) == ("act", "so", "search", "Ada")
    assert (first["urls"], first["n_documents"], first["tool_s"]) == (["w/Ada"], 1, 0.5)
    assert (last["tool"], last["n_documents"], last["tool_s"]) == ("", None, None)


@pytest.mark.parametrize("outcome", ["dropped", "dead"])
def test_episode_that_was_not_graded_has_a_row_without_reward(outcome: str) -> None:
    row = episode_row("r", ended(told(turn("x </think> <search> Ada </search>", FOUND), outcome=outcome, answer=None)))
    assert (row["outcome"], row["reward"], row["correct"], row["fate"]) == (outcome, None, None, "")
    assert (row["n_turns"], row["n_searches"], row["n_tokens"]) == (1, 1, 3)
    assert row["reason"] == {"dropped": "tool_outage", "dead": "no_progress"}[outcome]


def test_log_probabilities_of_training_stand_at_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.records import Segment

    def packed(dtype: str, values: list[float]) -> Column:
        return Column(dtype=dtype, shape=(len(values),), data=np.array(values, f"<{dtype}").tobytes())

    columns = {"ids": packed("u4", [5, 6, 7, 8]), "mask": packed("u1", [0, 1, 1, 1]), "logprobs": packed("f4", [0, -1, -2, -3])}
    segment = Segment(id="s0", n_prompt=1, first_turn=0, last_turn=0, columns=columns, versions=[])
    trained = TrainedSegment(segment="s0", columns={"positions": packed("u4", [1, 3]), "logprobs": packed("f4", [-1.5, -3.5])})
    episode = replace(ended(), trained=TrainedEpisode(episode="t-0-0-0", advantage=0.25, segments=[trained]))
    monkeypatch.setattr(EndedEpisode, "segments", property(lambda _: [segment]))
    (row,) = segment_rows(episode)
    assert set(row) == set(SEGMENTS.names)
    assert (row["n_tokens"], row["n_trained"], row["advantage"]) == (4, 3, 0.25)
    np.testing.assert_array_equal(np.frombuffer(row["train_logprobs"], "<f4"), [np.nan, -1.5, np.nan, -3.5])
    (without,) = segment_rows(ended())
    assert without["train_logprobs"] is None


def write(folder: Path, names: list[str], **limits: int) -> list[Path]:
    with ParquetFiles(folder, [EPISODES, TURNS], {"asearch.run": "r"}, **limits) as files:
        for name in names:
            episode = ended(told(turn("so </think> <search> Ada </search>", FOUND), answer="Lima", episode=name))
            files.writers["episodes"].add(episode_row("r", episode))
            for row in turn_rows(episode):
                files.writers["turns"].add(row)
    return files.files


def test_parts_and_row_groups_are_bounded_and_read_as_one_table(tmp_path: Path) -> None:
    files = write(tmp_path, [f"e-{number}" for number in range(23)], group_rows=4, part_groups=2)
    parts = [path for path in files if path.name.startswith("episodes")]
    assert [path.name for path in parts] == [f"episodes-{number:05d}.parquet" for number in range(3)]
    sizes = [parquet.ParquetFile(path).metadata for path in parts]
    assert [meta.num_rows for meta in sizes] == [8, 8, 7]
    assert max(meta.row_group(n).num_rows for meta in sizes for n in range(meta.num_row_groups)) == 4
    frame = pd.read_parquet(parts)
    assert list(frame.episode) == [f"e-{number}" for number in range(23)]
    few_bytes = write(tmp_path, ["e-0", "e-1", "e-2"], group_bytes=1, part_groups=1)
    assert len(few_bytes) == 6
    assert sorted(tmp_path.glob("*.parquet")) == sorted(few_bytes), "parts of the earlier archive are gone"


def test_writing_again_gives_the_same_bytes_and_an_error_changes_nothing(tmp_path: Path) -> None:
    (first, _) = write(tmp_path, ["a", "b"])
    before = first.read_bytes()
    write(tmp_path, ["a", "b"])
    assert first.read_bytes() == before
    (tmp_path / ".episodes-00007.parquet.part").write_bytes(b"left by a writer that was killed")
    with pytest.raises(RuntimeError), ParquetFiles(tmp_path, [EPISODES], {}) as files:
        files.writers["episodes"].add(episode_row("r", ended()))
        raise RuntimeError
    assert first.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with ParquetFiles(tmp_path, [EPISODES], {}), pytest.raises(SecondWriterError), ParquetFiles(tmp_path, [EPISODES], {}):
        pass
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["episodes-00000.parquet"], "an empty table is a table"


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    known = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "pyarrow" else known(name))
    with pytest.raises(ConfigError, match=r"pip install 'asearch\[parquet\]'"):
        need_parquet()


def test_commands_that_read_episodes_do_not_import_pyarrow() -> None:
    """Only what writes Parquet pays for it."""
    code = "import sys, actors.cli.archive, actors.cli.dataset, actors.cli.behaviour\n"
    code += "sys.exit('pyarrow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# --- data sets --------------------------------------------------------------------------------------------------------


def graded(episode: str, reward: float, task: str = "a", group: str = "g", n_tokens: int = 5) -> EpisodeRow:
    return EpisodeRow(
        episode=episode, group=group, member=0, purpose="train", task=task, reward=reward, correct=reward >= 1, n_tokens=n_tokens
    )


def test_best_of_a_task_come_first_and_right_ones_alone_are_kept() -> None:
    rows = [graded("long", 1.0, n_tokens=9), graded("short", 1.0), graded("wrong", 0.0), graded("other", 1.0, task="b")]
    found = {task: [row.episode for row in each] for task, each in by_task(rows, correct_only=True).items()}
    assert found == {"a": ["short", "long"], "b": ["other"]}
    assert len(by_task(rows, correct_only=False)["a"]) == 3
    assert by_task([EpisodeRow(episode="e", group="g", member=0, purpose="train")], correct_only=False) == {}


def test_pairs_are_of_one_group_with_a_margin() -> None:
    rows = [
        *(graded("a1", 1.0), graded("a2", 0.8), graded("a3", 0.5), graded("a4", 0.0), graded("a5", 0.1)),
        *(graded("b1", 1.0, group="h"), graded("b2", 1.0, group="h")),
        *(graded("c1", 0.3, task="c", group="i"), graded("c2", 0.0, task="c", group="i")),
    ]
    found = {task: [(better.episode, worse.episode) for better, worse in each] for task, each in pairs(rows, 0.0).items()}
    assert found == {"a": [("a1", "a4"), ("a2", "a5")], "c": [("c1", "c2")]}
    assert list(pairs(rows, 0.5)) == ["a"]
    assert list(pairs(rows, 0.0, min_reward=0.9)) == ["a"]
    assert [len(each) for each in pairs(rows, 0.9).values()] == [1]


def test_pair_that_does_not_begin_alike_is_refused() -> None:
    one = [{"role": "user", "content": "a", "train": False}, {"role": "assistant", "content": "x", "train": True}]
    other = [{"role": "user", "content": "b", "train": False}, {"role": "assistant", "content": "y", "train": True}]
    with pytest.raises(ValueError, match="do not begin alike"):
        dpo_row("r", graded("a", 1.0), graded("b", 0.0), one, other)
    assert dpo_row("r", graded("a", 1.0), graded("b", 0.0), one, [one[0], other[1]])["prompt"] == one[:1]
