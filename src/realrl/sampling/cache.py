"""Keys and values of rows that are decoded together, with spare columns for new tokens; rows leave and enter."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

# Columns by which a cache grows. Attention reads all columns at every token, so a copy every 256 tokens costs almost nothing.
BLOCK = 256


class RowLayer(DynamicLayer):
    """One layer's keys and values (R, heads, columns, size): views of the used part of larger tensors, the rooms.

    A layer with a sliding window keeps all columns; transformers masks them, as it does without a cache.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self._block = block
        self._rooms: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns. An empty layer takes the first tensors as its rooms, without a copy."""
        new = (key_states, value_states)
        if not self._rooms:
            self._rooms = list(new)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            return self._show(len(key_states), key_states.shape[2])
        rows, width = len(key_states), self.get_seq_length()
        wider = width + key_states.shape[2]
        for index, states in enumerate(new):
            if wider > self._rooms[index].shape[2]:
                room = states.new_empty(rows, states.shape[1], wider + self._block, states.shape[3])
                room[:, :, :width] = self._rooms[index][:rows, :, :width]
                self._rooms[index] = room
            self._rooms[index][:rows, :, width:wider] = states
        return self._show(rows, wider)

    def repeated(self, rows: int) -> RowLayer:
        """The layer's only row, `rows` times, as a view."""
        layer = RowLayer(self._block)
        layer._rooms = [room.expand(rows, -1, -1, -1) for room in self._rooms]
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        layer._show(rows, self.get_seq_length())
        return layer

    def push_right(self, steps: Int[Tensor, " R"]) -> None:
        """Move the columns of each row to the right. The last columns are lost, and the first ones then hold any values."""
        columns = torch.arange(self.get_seq_length(), device=steps.device) - steps[:, None]
        for index, room in enumerate(self._rooms):
            places = columns.clamp(min=0)[:, None, :, None].expand(-1, room.shape[1], -1, room.shape[3])
            self._rooms[index] = room.gather(2, places)
        self._show(*columns.shape)

    def admit(self, prompts: RowLayer, repeat: Int[Tensor, " R"], drop: int) -> None:
        """Add a row for each item of `repeat`, the index of its row in `prompts`; drop the first `drop` columns."""
        width = max(self.get_seq_length() - drop, prompts.get_seq_length())
        rows = len(self.keys) if self.keys is not None else 0
        for index, prompt in enumerate(prompts._rooms):
            room = prompt.new_empty(rows + len(repeat), prompt.shape[1], width + self._block, prompt.shape[3])
            if rows:
                _fill(room[:rows, :, :width], self._rooms[index][:rows, :, drop : self.get_seq_length()])
            _fill(room[rows:, :, :width], prompt[repeat])
            self._rooms[index : index + 1] = [room]
        self.dtype, self.device, self.is_initialized = prompts.dtype, prompts.device, True
        self._show(rows + len(repeat), width)

    def move(self, sources: Int[Tensor, " M"], targets: Int[Tensor, " M"], rows: int) -> None:
        """Copy rows `sources` over `targets` and keep the first `rows` rows. A half-empty room is replaced by a smaller one."""
        width = self.get_seq_length()
        for index, room in enumerate(self._rooms):
            if len(targets):
                room[targets, :, :width] = room[sources, :, :width]
            if 2 * rows <= len(room):
                self._rooms[index] = room[:rows].clone()
        self._show(rows, width)

    def _show(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:rows, :, :width] for room in self._rooms)
        return self.keys, self.values


def _fill(room: Float[Tensor, "R H C D"], states: Float[Tensor, "R H c D"]) -> None:
    """Put the states at the right end, and zeros before them, because masked columns must be finite."""
    blank = room.shape[2] - states.shape[2]
    room[:, :, :blank] = 0
    room[:, :, blank:] = states


class RowCache(DynamicCache):
    """A cache of `RowLayer`s, with `block` spare columns. It is right for layers with full or sliding-window attention; the
    sampler tries it on the model before it is used."""

    def __init__(self, config: PreTrainedConfig, block: int = BLOCK) -> None:
        super().__init__()
        self.layers = [RowLayer(block) for _ in DynamicCache(config=config).layers]

    def repeated(self, rows: int) -> RowCache:
        """See `RowLayer.repeated`."""
        cache = copy(self)
        cache.layers = [layer.repeated(rows) for layer in self.layers]
        return cache

    def push_right(self, steps: Int[Tensor, " R"]) -> None:
        """See `RowLayer.push_right`. Copies nothing if no row moves."""
        if bool(steps.any()):
            for layer in self.layers:
                layer.push_right(steps)

    def admit(self, prompts: RowCache, repeat: Int[Tensor, " R"], drop: int) -> None:
        """See `RowLayer.admit`. Empties `prompts` layer by layer, which frees its memory at once."""
        for index, layer in enumerate(self.layers):
            layer.admit(prompts.layers[index], repeat, drop)
            prompts.layers[index] = RowLayer(0)

    def move(self, sources: Int[Tensor, " M"], targets: Int[Tensor, " M"], rows: int) -> None:
        """See `RowLayer.move`."""
        for layer in self.layers:
            layer.move(sources, targets, rows)
