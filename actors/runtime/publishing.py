"""Published weights: exported by the rank, announced through the journal, deleted when newer ones have been announced."""

import asyncio
import contextlib
import re
import shutil
from pathlib import Path

import structlog

from actors.runtime.platform import Platform
from actors.runtime.policy_journal import PolicyJournal
from actors.runtime.ranks import Rank
from actors.runtime.transfer.broadcasting import Broadcaster
from actors.runtime.transfer.source import WeightSource
from asearch.errors import StorageError
from asearch.weights.checking import describe
from schemas.events import PolicyPublished
from schemas.local import ExportWeights, WeightsExported
from schemas.records import Version, WeightManifest

TIMEOUT_S = 3600.0
MAX_TRIES = 5
RETRY_S = 1.0
"""Wait after the first failure; it doubles with every further one."""
_NAME = re.compile(r"v(\d+\.\d+)(\.partial)?\Z")


class Publisher:
    """Announces the weights of one rank under one claim."""

    def __init__(
        self,
        platform: Platform,
        journal: PolicyJournal,
        rank: Rank,
        folder: Path,
        model: str,
        keep: int,
        source: WeightSource | None = None,
        broadcaster: Broadcaster | None = None,
    ) -> None:
        """The newest `keep` announced folders stay; `source` serves them to other hosts, `broadcaster` sends them once."""
        self._platform = platform
        self._journal = journal
        self._rank = rank
        self._folder = folder
        self._model = model
        self._keep = keep
        self._source = source
        self._broadcaster = broadcaster
        self._log = structlog.get_logger().bind(folder=str(folder))
        self._manifest: WeightManifest | None = None

    async def publish(self, version: Version, parent: Version | None, changed: bool) -> None:
        """Announce the rank's weights as `version`; weights that have not changed are announced from the folder they are in.

        Raises StorageError when a disk has refused too often, SecondTrainerError.
        """
        if changed or self._manifest is None:
            self._manifest = await self._export(version)
        await self._platform.fault("trainer.exported")
        manifest = self._broadcaster.offer(self._manifest) if self._broadcaster else self._manifest
        await self._journal.append(
            PolicyPublished(
                id=f"published-{self._model}-{version}",
                at_ns=self._platform.now_ns(),
                model=self._model,
                version=version,
                parent=parent,
                manifest=manifest,
            )
        )
        if self._broadcaster is not None:
            self._broadcaster.send(manifest, version)
        await self._platform.fault("trainer.published")
        await asyncio.to_thread(self._prune)

    async def _export(self, version: Version) -> WeightManifest:
        command = ExportWeights(path=str(self._folder / f"v{version}"), version=version, fsync=False)
        n_failed = 0
        while True:
            await self._platform.fault("trainer.export_asked")
            try:
                manifest = (await self._rank.ask(command, WeightsExported, TIMEOUT_S)).manifest
                return await self._offer(manifest)
            except (StorageError, OSError) as error:
                n_failed += 1
                if n_failed == MAX_TRIES:
                    raise StorageError(
                        f"{error}. Tried {MAX_TRIES} times: free space on the disk of {self._folder}, "
                        "or set checkpoint.weights_dir to a folder where there is more"
                    ) from error
                wait_s = RETRY_S * 2 ** (n_failed - 1)
                self._log.error("weights could not be written", error=str(error), next_in_s=wait_s)
                await self._platform.sleep(wait_s)

    async def _offer(self, manifest: WeightManifest) -> WeightManifest:
        described = await asyncio.to_thread(describe, manifest)
        return described if self._source is None else await self._source.offer(described, self._keep)

    def _prune(self) -> None:
        """Delete what dead lives, refused trainers and older versions have left."""
        keep = {Path(path).name for path in self._journal.published[-self._keep :]}
        keep |= set(self._source.kept if self._source is not None else [])
        keep |= set(self._broadcaster.kept if self._broadcaster is not None else [])
        for path in self._ours():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def remove_all(self) -> None:
        """Delete what this trainer and those before it have published; a successor's weights stay."""
        for path in self._ours():
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _ours(self) -> list[Path]:
        """Folders of this lineage and older ones: those of a younger one belong to whoever has claimed the model since."""
        if not self._folder.is_dir():
            return []
        named = ((_NAME.match(path.name), path) for path in sorted(self._folder.iterdir()))
        return [path for name, path in named if name and Version.parse(name[1]).lineage <= self._journal.lineage]
