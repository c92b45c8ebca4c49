"""The agent with the toy tokenizer, whose tags are single tokens."""

from pathlib import Path

from agent_scenes import COMPACT, found, scripted, start_of

from asearch.agents.episode import Finished
from asearch.agents.packed import unpack_ids
from asearch.agents.scripted import run_episode
from asearch.agents.segments import segments
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer


def toy_tokenizer(folder: Path, text: str) -> Tokenizer:
    save_tokenizer(build_tokenizer([text]), folder, 512)
    return Tokenizer.load(folder)


def test_an_episode_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(tmp_path, "Question: Who? Rome is a city. read look")
    texts = [" look </think> <access> /page/1 </access>", " read </think>", " <answer> Rome </answer>"]
    state = run_episode(start_of(COMPACT), tokenizer, scripted(texts), lambda call: found("Rome is a city."))
    assert state.finished == Finished(status="answered", answer="Rome")
    assert list(state.generated) == texts
    last = segments(state)[-1]
    text = tokenizer.decode(unpack_ids(last.columns["ids"].data))
    assert text.startswith("Question: Who?\n<think> look </think> <access> /page/1 </access>\n<information>")
    assert text.endswith("<think> read </think> <answer> Rome </answer>")


def test_end_of_text_is_a_special_token(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(tmp_path, "Question: Who?")
    assert tokenizer.eos_id is not None
    end = tokenizer.decode([tokenizer.eos_id])
    state = run_episode(start_of(COMPACT), tokenizer, scripted([" hm" + end]), lambda call: found())
    assert state.finished == Finished(status="ended")
