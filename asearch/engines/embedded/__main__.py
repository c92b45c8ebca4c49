"""Starts the embedded engine: `python -m asearch.engines.embedded --model-path DIR --port P`."""

from __future__ import annotations

import os
import sys

from asearch.engines.embedded.options import parse


def main() -> None:
    """Entry point; the thread count must stand in the environment before torch is first imported."""
    options = parse()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    from asearch.engines.embedded.run import serve
    from asearch.errors import AsearchError

    try:
        serve(options)
    except AsearchError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)
    sys.stderr.flush()
    # The scheduler's thread may still be inside a step, which interpreter shutdown must not pull the rug from under.
    os._exit(0)


if __name__ == "__main__":
    main()
