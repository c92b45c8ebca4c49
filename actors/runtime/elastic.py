"""Engines of a local run join and leave while it goes on: the supervisor's answer to `AddEngines` and `RemoveEngines`."""

from collections.abc import Callable
from pathlib import Path

import structlog

from actors.runtime.bus import Bus, Incoming
from actors.runtime.membership import Membership, membership_of, write_membership
from actors.runtime.supervisor import ChildSpec, Supervisor
from asearch.configuration.settings import Settings
from asearch.errors import InputError
from schemas.commands import AddEngines, EnginesChanged, RemoveEngines

MAX_ENGINES = 256


class ElasticEngines:
    """Keeps the membership of one run, and its supervisor in step with it."""

    def __init__(
        self, run: str, run_dir: Path, settings: Settings, supervisor: Supervisor, spec_of: Callable[[str], ChildSpec]
    ) -> None:
        """`spec_of` makes the process of an engine of this name."""
        self._run, self._run_dir, self._settings = run, run_dir, settings
        self._supervisor, self._spec_of = supervisor, spec_of
        self._log = structlog.get_logger()
        self.membership = membership_of(run_dir, settings)
        write_membership(run_dir, self.membership)

    async def serve(self, bus: Bus) -> None:
        """Take requests from now on."""
        await bus.subscribe(AddEngines, self._run, self._answer)
        await bus.subscribe(RemoveEngines, self._run, self._answer)

    async def _answer(self, incoming: Incoming) -> None:
        before, error = self.membership, ""
        try:
            if isinstance(incoming.message, AddEngines):
                self._add(incoming.message.n)
            elif isinstance(incoming.message, RemoveEngines):
                self._remove(incoming.message)
        except InputError as refused:
            error = str(refused)
        changed = sorted({*before.engines} ^ {*self.membership.engines})
        self._log.info("engines asked for", changed=changed, engines=self.membership.engines, error=error or None)
        await incoming.reply(EnginesChanged(changed=changed, engines=self.membership.engines, error=error))

    def _add(self, n: int) -> None:
        if self._settings.engine.urls:
            raise InputError("engine.urls names this run's servers: start an engine of your own with `asearch actor engine`")
        if not self._supervisor.is_running:
            raise InputError("the run does not train yet, or does no more")
        if len(self.membership.engines) + n > MAX_ENGINES:
            raise InputError(f"a run keeps at most {MAX_ENGINES} engines")
        before = self.membership
        self._keep(before.with_more(n))
        for name in self.membership.engines[len(before.engines) :]:
            self._supervisor.add(self._spec_of(name))

    def _remove(self, command: RemoveEngines) -> None:
        before = self.membership
        self._keep(before.without(command.engines, command.n))
        for name in before.engines:
            if name not in self.membership.engines:
                self._supervisor.remove(name, now=command.now)

    def _keep(self, membership: Membership) -> None:
        """On disk first: a supervisor that dies in between is started again with what was asked for."""
        write_membership(self._run_dir, membership)
        self.membership = membership
