"""Ports that a run would use are free, or held by the one who should hold them."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

from actors.cli.checks.broker_state import broker_file, listener, named, processes
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.runs import runs_of
from actors.runtime.broker import HOST
from actors.runtime.run_files import URL_FILE
from actors.runtime.workspace import is_live
from asearch.configuration.settings import ViewerSettings

PAGE_TIMEOUT_S = 3.0


def broker(subject: Subject) -> list[Finding]:
    """The broker's port is free, or this workspace's broker has it."""
    noted = broker_file(subject)
    ours = {found.pid for found in processes(subject)}
    findings: list[Finding] = []
    if noted is not None and subject.port in (0, noted.port):
        findings.append(_judge("broker port", noted.port, ours, "so that the broker can come back on it"))
    elif subject.port:
        other = f"or choose another one: `asearch up --port {subject.port % 65535 + 1}`"
        findings.append(_judge("broker port", subject.port, ours, other))
        if noted is not None and noted.process.is_alive:
            detail = f"this workspace's broker runs on port {noted.port}, not on {subject.port}"
            findings.append(Finding("broker port", "failed", detail, f"{subject.command('down')}, or leave --port {noted.port}"))
    else:
        findings.append(Finding("broker port", "ok", "a free one is taken when a run starts"))
    return findings


async def page(subject: Subject) -> list[Finding]:
    """The page of every live run answers; else the port that a page would take is free."""
    live = [(content, run_dir) for content, run_dir in runs_of(subject) if is_live(content) and content.settings.viewer.enabled]
    found = [finding for content, run_dir in live if (finding := await _answering(content.run, run_dir)) is not None]
    port = subject.page_port or ViewerSettings().port
    if any(finding.detail.startswith(f"{port} ") for finding in found):
        return found
    judged = _judge("page port", port, set(), f"or choose another one: -s viewer.port={port % 65535 + 1}")
    if judged.status == "failed" and not subject.page_port:
        judged = replace(judged, status="warning", detail=f"{judged.detail}; the page takes any free one instead")
    return [*found, judged]


async def _answering(run: str, run_dir: Path) -> Finding | None:
    """Whether the page of a live run answers; None before it has said where it is."""
    try:
        port = int((run_dir / URL_FILE).read_text(encoding="utf-8").strip().rstrip("/").rpartition(":")[2])
    except (OSError, ValueError):
        return None
    try:
        async with asyncio.timeout(PAGE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"HEAD / HTTP/1.0\r\nHost: %s\r\n\r\n" % f"{HOST}:{port}".encode())
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        line = b""
    if line.startswith(b"HTTP/"):
        return Finding("page port", "ok", f"{port} is held by the page of run {run}")
    fix = f"look at {run_dir}/logs/viewer-0.log; the supervisor starts a viewer again that is killed"
    return Finding("page port", "failed", f"{port} should be the page of run {run}, and nothing answers there", fix)


def _judge(name: str, port: int, ours: set[int], otherwise: str) -> Finding:
    if not is_taken(port):
        return Finding(name, "ok", f"{port} is free")
    holder = listener(port)
    if holder is not None and holder.pid in ours:
        return Finding(name, "ok", f"{port} is held by this workspace's broker (process {holder.pid})")
    end = f"kill {holder.pid}" if holder is not None else f"find it with `ss -ltnp sport = :{port}` and end it"
    return Finding(name, "failed", f"{port} on {HOST} is taken by {named(holder)}", f"{end}, {otherwise}")


def is_taken(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False
