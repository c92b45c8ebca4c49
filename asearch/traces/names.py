"""Names of episodes: which one is meant by what somebody typed, and what its trace is called."""

import difflib
from collections.abc import Collection

import xxhash

from asearch.errors import InputError
from asearch.traces.plain_text import plain_line

MOST = 5
"""How many names an error offers."""


def trace_id_of(run: str, episode: str) -> str:
    """The id of an episode's trace, as in its spans and log lines: xxh3-128 of `{run}/{episode}`, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{run}/{episode}".encode())


def named_episode(wanted: str, names: Collection[str], run: str) -> str:
    """The name itself, else the only one that begins with it, else the only one that ends with it. Raises InputError."""
    if wanted in names:
        return wanted
    for found in ([name for name in names if name.startswith(wanted)], [name for name in names if name.endswith(wanted)]):
        if len(found) == 1:
            return found[0]
        if found and wanted:
            more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
            listed = ", ".join(sorted(found, key=lambda name: (len(name), name))[:MOST])
            raise InputError(f"run '{run}' has {len(found)} episodes that '{plain_line(wanted)}' may mean: {listed}{more}")
    near = difflib.get_close_matches(wanted, names, n=MOST)
    hint = f"did you mean {', '.join(near)}?" if near else f"`asearch episodes {run}` lists all {len(names)}"
    raise InputError(f"run '{run}' has no episode '{plain_line(wanted)}'; {hint}")
