"""E3, the protocol codec: how a question, a tool text or a forced answer is written, and how a generation is read."""

from typing import Protocol

from asearch.agents.parse import Action, first_action, last_tag


class ProtocolCodec(Protocol):
    """Text of one family of models. Pure; reads only what the model generated."""

    def opening(self, instruction: str, question: str) -> str:
        """The prompt of an episode."""
        ...

    def act_stops(self, tools: tuple[str, ...]) -> tuple[str, ...]:
        """Stop strings of a call that acts."""
        ...

    def read_stops(self) -> tuple[str, ...]:
        """Stop strings of a call that reads a tool text."""
        ...

    def answer_stops(self) -> tuple[str, ...]:
        """Stop strings of a forced answer."""
        ...

    def observation(self, text: str) -> str:
        """A tool text (with its own delimiters) as it stands in the prompt, up to where the model goes on."""
        ...

    def closing(self) -> str:
        """What closes a thought that its reader did not close."""
        ...

    def forced(self, thinking: bool) -> str:
        """What opens an answer at the end of a text; `thinking` tells whether a thought is open there."""
        ...

    def action(self, text: str, tools: tuple[str, ...]) -> Action | None:
        """The action of a generation, None for a malformed one."""
        ...

    def answer(self, text: str) -> str | None:
        """The answer that stands in a reading generation."""
        ...

    def forced_answer(self, text: str) -> str | None:
        """The answer that a generation after `forced` completed."""
        ...


class TagCodec:
    """ASearcher's base-model protocol: one append-only raw text with `<think>`, `<search>`, `<access>` and `<answer>`."""

    def opening(self, instruction: str, question: str) -> str:
        return f"{instruction}Question: {question}\n<think>"

    def act_stops(self, tools: tuple[str, ...]) -> tuple[str, ...]:
        return (*(f"</{tool}>" for tool in tools), "</answer>")

    def read_stops(self) -> tuple[str, ...]:
        return ("</think>",)

    def answer_stops(self) -> tuple[str, ...]:
        return ("</answer>",)

    def observation(self, text: str) -> str:
        return f"\n{text}\n<think>"

    def closing(self) -> str:
        return " </think>"

    def forced(self, thinking: bool) -> str:
        return " </think> <answer>" if thinking else " <answer>"

    def action(self, text: str, tools: tuple[str, ...]) -> Action | None:
        return first_action(text, tools)

    def answer(self, text: str) -> str | None:
        return last_tag(text, "answer")

    def forced_answer(self, text: str) -> str | None:
        return last_tag("<answer>" + text, "answer")
