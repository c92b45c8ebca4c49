"""Keys and values of many sequences: one preallocated row of positions per sequence."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from asearch.models.config import ModelConfig

_MAP_NORESERVE = 0x4000


class KvCache:
    """`n_rows` rows of `n_positions` positions for every layer, in fp32.

    On a CPU the memory is an anonymous mapping that starts as zeros and becomes resident only where it is written, so rows
    may be as long as the model allows; on another device all of it is taken at once. Values never written are zeros, so a
    masked position never contributes NaN.
    """

    def __init__(self, config: ModelConfig, n_rows: int, n_positions: int, device: str | torch.device = "cpu") -> None:
        self.n_rows = n_rows
        self.n_positions = n_positions
        self.kv_width = config.n_kv_heads * config.head_dim
        shape = (n_rows, config.n_layers, n_positions, 2 * self.kv_width)
        self.device = torch.device(device)
        self._memory: mmap.mmap | None = None
        if self.device.type == "cpu":
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._memory = mmap.mmap(-1, self.size_bytes(config, n_rows, n_positions), flags=flags)
            held = torch.frombuffer(self._memory, dtype=torch.float32)
        else:
            held = torch.zeros(math.prod(shape), dtype=torch.float32, device=self.device)
        self.kv_SLPW: Tensor = held.view(shape)
        """[rows, layers, positions, keys then values of all key heads]"""
        self.flat_XW: Tensor = self.kv_SLPW.view(-1, shape[-1])
        """The same memory with one entry per (row, layer, position)."""
        self._layer_starts_L1 = (torch.arange(config.n_layers, device=self.device) * n_positions).unsqueeze(1)
        self._row_stride = config.n_layers * n_positions

    @staticmethod
    def size_bytes(config: ModelConfig, n_rows: int, n_positions: int) -> int:
        """Bytes that the cache would take if every position were written."""
        return n_rows * config.n_layers * n_positions * 2 * config.n_kv_heads * config.head_dim * 4

    def entries(self, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """Indices into `flat_XW` of N (row, position) pairs in every layer."""
        return rows_N * self._row_stride + positions_N + self._layer_starts_L1

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Copies the first `n_tokens` positions of one row over another row."""
        self.kv_SLPW[target, :, :n_tokens] = self.kv_SLPW[source, :, :n_tokens]

    def swap(self, a: int, b: int, n_tokens: int) -> None:
        """Exchanges the first `n_tokens` positions of two rows."""
        held = self.kv_SLPW[a, :, :n_tokens].clone()
        self.kv_SLPW[a, :, :n_tokens] = self.kv_SLPW[b, :, :n_tokens]
        self.kv_SLPW[b, :, :n_tokens] = held

    def clear(self) -> None:
        """Zeroes all rows; on a CPU their memory goes back to the system."""
        if self._memory is None:
            self.kv_SLPW.zero_()
        else:
            self._memory.madvise(mmap.MADV_DONTNEED)
