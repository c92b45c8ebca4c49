"""What a tool is, and a set of tools by name."""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from asearch.errors import ConfigError, ToolError
from asearch.registry import Registry
from schemas.records import ToolResult

ErrorKind = Literal["retryable", "permanent", "refused", "timeout"]
"""`retryable` and `timeout`: the infrastructure's fault, the same call may work later. `permanent`: it never will.
`refused`: the arguments are not acceptable, the policy's fault."""

Clock = Callable[[], int]
"""Nanoseconds of a monotonic clock."""


class ToolFailure(ToolError):
    """A tool call that ended in an error of a known kind."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


class Tool(Protocol):
    """Something a policy can call. A call never raises for what the world did: it returns a result that says so."""

    @property
    def name(self) -> str:
        """The name under which the policy calls it."""
        ...

    @property
    def parameter(self) -> str:
        """The argument that a call with a single text, such as `<search>…</search>`, fills."""
        ...

    async def call(self, arguments: Mapping[str, str], *, deadline_s: float) -> ToolResult:
        """Run one call within `deadline_s` seconds, over which the result is the error `timeout`."""
        ...


class ToolSet:
    """The tools of a run, by name."""

    def __init__(self, *tools: Tool) -> None:
        self._tools: Registry[Tool] = Registry("tool")
        for tool in tools:
            self._tools.register(tool.name)(tool)

    @property
    def names(self) -> list[str]:
        """Names, sorted."""
        return self._tools.names()

    def get(self, name: str) -> Tool:
        """The tool of that name. Raises ConfigError with a suggestion."""
        return self._tools.get(name)

    async def call(self, name: str, text: str, *, deadline_s: float) -> ToolResult:
        """Call a tool with the name and the single argument that a policy wrote; an unknown name is the error `refused`."""
        try:
            tool = self._tools.get(name)
        except ConfigError as error:
            return ToolResult(error="refused", message=str(error))
        return await tool.call({tool.parameter: text}, deadline_s=deadline_s)


def argument(arguments: Mapping[str, str], name: str, max_chars: int) -> str:
    """A required argument without surrounding space. Raises ToolFailure(refused) if it is missing, empty or too long."""
    value = arguments.get(name, "").encode("utf-8", errors="replace").decode("utf-8").strip()
    if not value:
        raise ToolFailure("refused", f"the argument `{name}` is missing or empty")
    if len(value) > max_chars:
        raise ToolFailure("refused", f"the argument `{name}` has {len(value)} characters, more than {max_chars}")
    return value
