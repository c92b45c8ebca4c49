"""Checks of what only a GPU can show, as one script: `python -m tests.gpu`."""
