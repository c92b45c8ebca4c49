"""What is known of a workspace's broker from outside: its file, its processes, its port."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from actors.cli.checks.finding import Subject
from actors.runtime.workspace import BROKER_FOLDER, BrokerFile

BROKER_FILE, CONFIGURATION = "broker.json", "nats.conf"
_PORT = re.compile(r"^\s*port\s*[:=]?\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A nats-server process that works on the workspace's store."""

    pid: int
    started: float
    configuration: Path | None
    """The file it was started with; None where its command line names none."""


def broker_folder(subject: Subject) -> Path:
    """Where the broker keeps its data."""
    return subject.root.resolve() / BROKER_FOLDER


def broker_file(subject: Subject) -> BrokerFile | None:
    """What the workspace has noted of its broker; None where nothing (readable) is."""
    try:
        return msgspec.json.decode((broker_folder(subject) / BROKER_FILE).read_bytes(), type=BrokerFile)
    except (OSError, msgspec.DecodeError):
        return None


def port_of(subject: Subject) -> int | None:
    """The port that the broker has, or had when it last ran."""
    noted = broker_file(subject)
    if noted is not None:
        return noted.port
    try:
        found = _PORT.search((broker_folder(subject) / CONFIGURATION).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return int(found[1]) if found else None


def processes(subject: Subject) -> list[Found]:
    """The nats-servers that work on the workspace's store, by what the system says of them."""
    folder, noted = str(broker_folder(subject)), broker_file(subject)
    found: list[Found] = []
    for process in psutil.process_iter(["pid", "cmdline", "create_time", "status"]):
        words: list[str] = process.info["cmdline"] or []
        if process.info["status"] == psutil.STATUS_ZOMBIE or not words:
            continue
        is_server = "nats-server" in Path(words[0]).name and any(folder == word or f"{folder}/" in word for word in words)
        is_noted = noted is not None and noted.process.pid == process.info["pid"] and noted.process.is_alive
        if is_server or is_noted:
            found.append(Found(process.info["pid"], process.info["create_time"], _configuration(words)))
    return found


def listener(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port of this machine, where the system tells."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.Error:
        return None
    return None


def named(process: psutil.Process | None) -> str:
    """A process for a reader: pid and the beginning of its command line, which may hold anything."""
    if process is None:
        return "a process that the system does not name"
    try:
        line = " ".join(process.cmdline())[:120]
    except psutil.Error:
        line = ""
    return f"process {process.pid} ({''.join(each if each.isprintable() else '?' for each in line)})"


def _configuration(words: list[str]) -> Path | None:
    for flag, value in itertools.pairwise(words):
        if flag in ("-c", "--config", "-config"):
            return Path(value)
    return next((Path(word.split("=", 1)[1]) for word in words if word.startswith(("--config=", "-c=", "-config="))), None)
