"""A local run from its start to its result: what the terminal shows, and what is left in the run's folder."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from actors.cli.browser import open_page
from actors.cli.plain import final_summary, phase_of
from actors.cli.screen import Frame, LiveScreen
from actors.runtime.following import View, follow
from actors.runtime.launching import tokens_sampled
from actors.runtime.local_run import LocalRun
from actors.runtime.run_files import read_url
from asearch.errors import AsearchError, ConfigError
from asearch.evaluation.report import RunReport
from schemas.events import RunEnded

REFRESH_S = 0.5
RESULT, PICTURE = "result.json", "curves.png"


def _phase(report: RunReport) -> str:
    """The name under which the time of this moment is counted."""
    if report.ended is not None:
        return "stop"
    for label, ends in report.accounts.labels.items():
        if ends.open:
            return f"eval_{label}"
    return "start" if report.journal.version is None else "train"


def phases_of(report: RunReport, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase, in their order; 0 for one that was over between two looks at the run."""
    evaluations = [f"eval_{label}" for label in report.accounts.labels]
    after = [name for name in evaluations if name != "eval_before"]
    moments = ["start", *(name for name in evaluations if name not in after), "train", *after, "stop"]
    names = [*(name for name in seconds if name not in moments), *moments]
    return {name: round(seconds.get(name, 0.0), 1) for name in names}


class RunFailedError(AsearchError):
    """The run ended for a reason that has a name and advice."""


class Session:
    """Runs a `LocalRun`, shows it, and reports."""

    def __init__(self, local: LocalRun, *, as_json: bool, opens_page: bool = False) -> None:
        self.local = local
        self._as_json = as_json
        self._opens_page = opens_page
        self._page = ""
        self._interrupted = asyncio.Event()
        self.actors_run = False
        self._begun_s = local.platform.monotonic()

    def interrupt(self, task: "asyncio.Task[int]") -> None:
        """Stop: before the actors run at once, then by the scheduler, which leaves nothing in flight; a second time kill."""
        if not self.actors_run:
            task.cancel()
        elif not self._interrupted.is_set():
            click.echo("stopping: open episodes are given up, the trainer checkpoints (Ctrl-C again to stop at once)", err=True)
            self._interrupted.set()
        else:
            click.echo("killing the actors", err=True)
            self.local.supervisor.kill()

    async def run(self) -> int:
        """The whole run; the exit status."""
        phases = self.local.phases
        async with self.local.started() as bus, follow(bus, self.local.run_dir) as view:
            ended = await self._live(view)
            left_s = self.local.platform.monotonic()
            if ended is not None:
                await view.catch_up(bus)
        phases.since("stop", left_s)
        if ended is None:
            name = self.local.run
            click.echo(
                f"stopped at once: run '{name}' has not ended; it goes on from its newest checkpoint with --run {name}", err=True
            )
            return 130
        self._report(view, ended)
        if ended.reason not in ("completed", "stopped"):
            raise RunFailedError(f"{ended.reason}: {ended.message}")
        return 0 if ended.reason == "completed" else 130

    async def _live(self, view: View) -> RunEnded | None:
        """Keep the actors and the screen going until the run ends or is interrupted, then stop the actors in order."""
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self.actors_run = True
            actors = tasks.create_task(self.local.supervise(), name="supervise")
            screen = tasks.create_task(self._show(view), name="screen")
            ended = tasks.create_task(self.local.until_ended(), name="ended")
            interrupted = tasks.create_task(self._until_interrupted(), name="interrupted")
            await asyncio.wait({ended, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            interrupted.cancel()
            actors.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await actors
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(ended)
            screen.cancel()
            ended.cancel()
        return ended.result() if ended.done() and not ended.cancelled() else None

    async def _until_interrupted(self) -> None:
        await self._interrupted.wait()

    async def _show(self, view: View) -> None:
        platform, phases = self.local.platform, self.local.phases
        last_s = platform.monotonic()
        with LiveScreen() as screen:
            while True:
                phase = "stop" if self._interrupted.is_set() else _phase(view.report)
                if not self._page and "viewer" in (beat.actor for beat in view.vitals.latest.values()):
                    self._page = self._found_page()
                screen.show(self._frame(view))
                try:
                    await platform.sleep(REFRESH_S)
                finally:
                    last_s = phases.since(phase, last_s)

    def _frame(self, view: View) -> Frame:
        platform = self.local.platform
        return Frame(
            run=self.local.run,
            now_ns=platform.now_ns(),
            elapsed_s=platform.monotonic() - self._begun_s,
            phase=phase_of(view.report),
            report=view.report,
            vitals=view.vitals,
            queues=view.queues,
            processes=self.local.supervisor.children,
            page=self._page,
        )

    def _found_page(self) -> str:
        """The address of the page, said once on a screen that is not drawn, and shown in the browser where that is wanted."""
        url = read_url(self.local.run_dir)
        if url and not sys.stderr.isatty():
            click.echo(f"page: {url}", err=True)
        if url and self._opens_page:
            open_page(url)
        return url

    def _report(self, view: View, ended: RunEnded) -> None:
        phases_s = phases_of(view.report, self.local.phases.seconds)
        result = view.report.to_json()
        result["run"] = self.local.run
        result["wall_s"] = round(self.local.platform.monotonic() - self._begun_s, 1)
        result["phases_s"] = phases_s
        # More than were recorded where engines were killed: those are gone, and were generated again.
        result["tokens_sampled"] = tokens_sampled(self.local.run_dir) or None
        result["ended"] = ended.reason
        (self.local.run_dir / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
        self._draw(view, self.local.run_dir / PICTURE)
        click.echo(final_summary(view.report, phases_s), err=True)
        click.echo(f"result: {self.local.run_dir / RESULT}   curves: {self.local.run_dir / PICTURE}", err=True)
        if self._as_json:
            sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
            sys.stdout.flush()

    def _draw(self, view: View, path: Path) -> None:
        try:
            view.report.picture(path)
        except ConfigError as error:
            click.echo(str(error), err=True)
