"""Plug-ins by name: what this project registers, and what other distributions offer as entry points `asearch.<kind>`."""

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from asearch.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """The plug-ins of one kind. `kind` is the word that messages and the entry-point group use."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its argument as `name`. Raises ConfigError if the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"two plug-ins of kind {self.kind} are called {name!r}")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """Registered names and those of installed entry points, in order."""
        offered = {point.name for point in entry_points(group=f"asearch.{self.kind}")}
        return sorted(offered | self._entries.keys())

    def get(self, name: str) -> T:
        """The plug-in called `name`. Raises ConfigError, with the nearest name, if there is none."""
        if name in self._entries:
            return self._entries[name]
        for point in entry_points(group=f"asearch.{self.kind}", name=name):
            return cast("T", point.load())
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names) or 'none'}"
        raise ConfigError(f"unknown {self.kind} {name!r}; {hint}")
