"""From the messages of a conversation to the text of a prompt, as the model's folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asearch.engines.embedded.body import BadRequestError
from asearch.errors import InputError

PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For folders without a template: one `role: content` per message, then `assistant:`."""


class ChatTemplate:
    """A Jinja template, run in a sandbox: it comes with the model and is not trusted."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        self._variables = variables | {"raise_exception": _raise}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise InputError(f"the chat template of the model's folder is not valid: {error}") from error

    @classmethod
    def load(cls, folder: str) -> ChatTemplate:
        """`chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, else `PLAIN`. Raises `InputError`."""
        config_path, own = Path(folder) / "tokenizer_config.json", Path(folder) / "chat_template.jinja"
        raw = config_path.read_bytes() if config_path.is_file() else b"{}"
        try:
            config = msgspec.json.decode(raw, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise InputError(f"{config_path} is not a JSON object: {error}") from error
        source = own.read_text() if own.is_file() else _named(config.get("chat_template")) or PLAIN
        return cls(source, {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")})

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt that the answer follows. Raises `BadRequestError` for messages that the template does not take."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, **self._variables)
        except (TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            raise BadRequestError(f"the model's chat template does not take these messages: {error}") from error


def _named(given: Any) -> str | None:
    """The default of several templates, where there are several."""
    if isinstance(given, list):
        return next((str(each["template"]) for each in given if each.get("name") == "default"), None)
    return None if given is None else str(given)


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    raw = msgspec.json.encode(value)
    return (raw if indent is None else msgspec.json.format(raw, indent=indent)).decode()
