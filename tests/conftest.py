"""What holds for all tests: the order in which two workers finish soonest, and no wall-clock bound inside properties."""

import hypothesis
import pytest

LONGEST_FIRST = ("chaos", "sim", "training", "crash", "cli", "planted", "tracing", "page", "durability", "fuzz")
"""Folders whose files take longest. A worker takes a file at a time: a long one that is taken last is waited for."""

# What a machine is busy with otherwise is not a property of the code; `pytest-timeout` bounds each test.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long folders first, and leave the order within them."""

    def place(item: pytest.Item) -> int:
        folders = item.path.parts
        return next((n for n, name in enumerate(LONGEST_FIRST) if name in folders), len(LONGEST_FIRST))

    items.sort(key=place)
