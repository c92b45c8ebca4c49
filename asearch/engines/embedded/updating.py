"""Weights received from an update group, staged until all of them are there; SGLang's routes and order of calls."""

from __future__ import annotations

import threading

import msgspec
from torch import Tensor

from asearch.engines.embedded.body import BadRequestError
from asearch.errors import TransferError
from asearch.models.config import ModelConfig
from asearch.models.update_group import UpdateGroup, empty, reach_store
from asearch.models.weights import check_shapes, checksum

TIMEOUT_S = 60.0
"""Of a group whose maker names none, as SGLang's interface has it."""


class JoinBody(msgspec.Struct):
    """Of `/init_weights_update_group`. `timeout_s` is this server's own."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    group_name: str = "weight_update_group"
    backend: str = "gloo"
    timeout_s: float = TIMEOUT_S


class LeaveBody(msgspec.Struct):
    """Of `/destroy_weights_update_group`."""

    group_name: str = "weight_update_group"


class ReceiveBody(msgspec.Struct):
    """Of `/update_weights_from_distributed`."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    group_name: str = "weight_update_group"
    weight_version: str | None = None
    flush_cache: bool = True
    abort_all_requests: bool = False


class Updates:
    """Groups and the update under way. Methods that receive block: they are called from threads, one at a time."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._groups: dict[str, UpdateGroup] = {}
        self._turn = threading.Lock()
        self._staged: dict[str, Tensor] | None = None
        self.version: str | None = None
        """What the update that is staged is to be called."""
        self.checksums: dict[str, str] = {}
        """xxh3-128 by tensor of the weights that were received last."""

    def join(self, body: JoinBody) -> None:
        """Become a member. Raises TransferError, BadRequestError."""
        with self._turn:
            if body.group_name in self._groups:
                raise BadRequestError(f"this server is in the group {body.group_name} already")
            store = reach_store(body.master_address, body.master_port, body.timeout_s)
            self._groups[body.group_name] = UpdateGroup.form(
                store, body.group_name, body.rank_offset, body.world_size, body.backend, body.timeout_s
            )

    def leave(self, name: str) -> None:
        """Leave a group; what was staged from it is forgotten. Raises BadRequestError."""
        with self._turn:
            group = self._groups.pop(name, None)
            if group is None:
                raise BadRequestError(f"this server is in no group {name}")
            self._staged = None
            group.close()

    def begin(self) -> None:
        """Open an update. Raises BadRequestError if one is open."""
        if self._staged is not None:
            raise BadRequestError("an update is open already: end it first")
        self._staged = {}

    def receive(self, body: ReceiveBody) -> None:
        """Take the next tensors of the update from the group. Raises TransferError, BadRequestError."""
        with self._turn:
            group = self._groups.get(body.group_name)
            if group is None or self._staged is None:
                raise BadRequestError("join the group and open an update first")
            if not len(body.names) == len(body.dtypes) == len(body.shapes):
                raise BadRequestError("names, dtypes and shapes must be of one length")
            try:
                for name, dtype, shape in zip(body.names, body.dtypes, body.shapes, strict=True):
                    tensor = empty(dtype, shape, group.device)
                    group.broadcast(tensor)
                    self._staged[name] = tensor
            except TransferError:
                self._staged = None
                raise
            self.version = body.weight_version

    def end(self) -> dict[str, Tensor]:
        """Close the update: all tensors of the model. Raises BadRequestError, InputError if they are not all there."""
        staged, self._staged = self._staged, None
        if staged is None:
            raise BadRequestError("no update is open")
        checksums = {name: checksum(tensor) for name, tensor in staged.items()}
        if self._config.tied:
            staged.pop("lm_head.weight", None)
        check_shapes(staged, self._config, "the update")
        self.checksums = checksums
        return staged
