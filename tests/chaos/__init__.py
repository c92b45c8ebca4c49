"""Faults on the real processes of a real run: `python -m tests.chaos --faults 100 --seed S --json`."""
