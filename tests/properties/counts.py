"""How many examples a property gets: the same few in every fast run, many fresh ones in the long run."""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("PROPERTY_FACTOR", "1"))
"""Multiplies every number of examples; above 1 the examples are drawn anew each time."""


def examples(n: int, steps: int = 30) -> settings:
    """Settings of a property with `n` examples, for state machines of at most `steps` steps."""
    return settings(
        max_examples=n * FACTOR,
        stateful_step_count=steps,
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        print_blob=FACTOR > 1,
        suppress_health_check=list(HealthCheck),
    )
