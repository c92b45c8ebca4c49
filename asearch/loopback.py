"""Processes of one machine that meet through torch stay on its loopback interface."""

import contextlib
import ipaddress
import os
import socket

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""What the backends read the name of their interface from."""


def stay_on_loopback(address: str) -> None:
    """Let a group that meets at a loopback address talk over that interface alone; torch would take that of the host's name.

    An interface that the environment names stands.
    """
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_loopback:
            loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
            for variable in INTERFACES:
                if loopback is not None:
                    os.environ.setdefault(variable, loopback)
