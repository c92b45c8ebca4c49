"""Prompts from messages: the folder's template, several of them, none, and hostile ones."""

import json
from pathlib import Path

import pytest

from asearch.engines.embedded.body import BadRequestError
from asearch.engines.embedded.chat_template import ChatTemplate
from asearch.errors import InputError

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
NAMED = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_a_folder_without_a_template_has_the_plain_one(tmp_path: Path) -> None:
    assert ChatTemplate.load(str(tmp_path)).render(MESSAGES) == "system: be brief\nuser: hello\nassistant:"


@pytest.mark.parametrize("case", ["config", "named", "file"])
def test_the_template_of_the_folder(tmp_path: Path, case: str) -> None:
    given = {"config": NAMED, "named": [{"name": "tool", "template": "x"}, {"name": "default", "template": NAMED}], "file": "x"}
    config = {"bos_token": {"content": "<s>"}, "chat_template": given[case]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if case == "file":
        (tmp_path / "chat_template.jinja").write_text(NAMED)
    assert ChatTemplate.load(str(tmp_path)).render(MESSAGES) == "<s><system>be brief<user>hello>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only users') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_may_not_do_is_the_requests_fault_at_most(source: str) -> None:
    with pytest.raises(BadRequestError, match="does not take these messages"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_an_invalid_template_is_named() -> None:
    with pytest.raises(InputError, match="not valid"):
        ChatTemplate("{% for %}", {})
