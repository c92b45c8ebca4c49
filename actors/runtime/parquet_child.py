"""The recorder's last act: `asearch archive` in a process of its own, so that a long job on the CPU holds up no heartbeat."""

import asyncio
import sys

import structlog

from actors.runtime.actor import DRAIN_TIMEOUTS_S, Context
from actors.runtime.platform import Process
from asearch.traces.tables import has_parquet
from schemas.events import RunEnded

MARGIN_S = 15.0
"""What is left of the recorder's drain when it gives up: to say so, and to end."""


async def write_parquet(context: Context, log: structlog.stdlib.BoundLogger, timeout_s: float | None = None) -> bool:
    """Have the Parquet files of a run that has ended written; whether they were. Never fails a run: it says what to do.

    Raises BusError where it cannot be told whether the run has ended.
    """
    if not context.settings.archive.parquet or await context.bus.get_last(RunEnded, context.run) is None:
        return False
    by_hand = f"asearch archive {context.run} --runs {context.run_dir.parent}"
    if not has_parquet():
        log.warning("no Parquet files: pip install 'asearch[parquet]', then run the command", command=by_hand)
        return False
    limit_s = DRAIN_TIMEOUTS_S["recorder"] - MARGIN_S if timeout_s is None else timeout_s
    argv = [sys.executable, "-m", "actors.cli.main", "archive", context.run, "--runs", str(context.run_dir.parent)]
    log_path = context.run_dir / "logs" / "archive.log"
    child: Process | None = None
    try:
        async with asyncio.timeout(limit_s):
            child = await context.platform.spawn([*argv, "--die-with-parent"], log_path=log_path)
            status = await child.wait()
    except TimeoutError:
        log.warning("the Parquet files are not written in time: run the command", command=by_hand, after_s=limit_s)
        return False
    except OSError as error:
        log.warning("the Parquet files are not written: run the command", command=by_hand, error=str(error))
        return False
    finally:
        if child is not None:
            child.kill()
    if status != 0:
        log.warning("the Parquet files are not complete: see the log, run the command", command=by_hand, log=str(log_path))
    return status == 0
