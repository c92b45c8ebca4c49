"""Ports that a run would use are free, or held by the one who should hold them."""

import socket

from actors.cli.checks.broker_state import broker_file, listener, named, processes
from actors.cli.checks.finding import Finding, Subject
from actors.runtime.broker import HOST


def ports(subject: Subject) -> list[Finding]:
    """The broker's port and the page's."""
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
    if subject.page_port:
        findings.append(_judge("page port", subject.page_port, set(), "or choose another port for the page"))
    return findings


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
