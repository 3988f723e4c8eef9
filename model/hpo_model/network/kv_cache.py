"""The KV cache: what layers keep of the tokens they have read, so that the next token is read alone.

Shapes: B sequences, T positions, H heads, E channels per head, D channels, K positions kept.

Sequences of different lengths lie side by side from position 0. The padding of a shorter one is read and kept as well,
behind its end: as the network is causal, no position before it sees it, and the next tokens overwrite it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo_model.network.memory import PhiMemory, Reading


class KVCache:
    """The state of a network between two tokens; for evaluation, where nothing writes to the memory.

    Args:
        rows: B, sequences side by side.
        room: positions that a sequence may have, the network's sequence length.
        device: of the network.

    Of the memory, which is frozen, it keeps the part of a reading that is the same for every position.
    """

    def __init__(self, rows: int, room: int, device: torch.device) -> None:
        self.room = room
        self.rows_B1 = torch.arange(rows, device=device)[:, None]
        self.positions_BT = torch.zeros((rows, 0), dtype=torch.int64, device=device)  # of the tokens being read
        self.end = 0  # no position from here on has been written
        self._layers: list[list[Tensor]] = []
        self._next = 0
        self._visible_B1TK: Tensor | None = None  # None: the tokens are the last ones of every sequence
        self._reading: Reading | None = None

    def begin(self, positions_BT: Tensor, end: int, *, aligned: bool) -> None:
        """Set the positions of the tokens that are read next.

        Args:
            positions_BT: of each.
            end: all of them stand before it.
            aligned: whether they stand right before it in every sequence; all of it from 0, or one token.
        """
        self.positions_BT = positions_BT
        self.end = end
        self._next = 0
        kept_K = torch.arange(end, device=positions_BT.device)
        self._visible_B1TK = None if aligned else (kept_K <= positions_BT[..., None])[:, None]

    def attend(self, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
        """Store the keys and values of an attention layer, and attend from its queries to what they may see."""
        heads, width = key_BHTE.shape[1], key_BHTE.shape[-1]
        kept = self._layer(2, (self.room, heads, width), key_BHTE)
        first = self.end - key_BHTE.shape[2]
        for buffer, new in zip(kept, (key_BHTE, value_BHTE), strict=True):
            if self._visible_B1TK is None:
                buffer[:, first : self.end] = new.transpose(1, 2)
            else:
                buffer[self.rows_B1, self.positions_BT] = new.transpose(1, 2)
        key, value = (buffer[:, : self.end].transpose(1, 2) for buffer in kept)
        if self._visible_B1TK is None:
            return F.scaled_dot_product_attention(query_BHTE, key, value, is_causal=first == 0)
        return F.scaled_dot_product_attention(query_BHTE, key, value, attn_mask=self._visible_B1TK)

    def taps(self, signal_BTD: Tensor, taps: int) -> list[Tensor]:
        """Store the signal of a convolution, and return it taps - 1, …, 1, 0 positions before each token."""
        (buffer,) = self._layer(1, (taps - 1 + self.room, signal_BTD.shape[-1]), signal_BTD)
        buffer[self.rows_B1, self.positions_BT + taps - 1] = signal_BTD
        return [buffer[self.rows_B1, self.positions_BT + tap] for tap in range(taps)]

    def reading_of(self, memory: PhiMemory) -> Reading:
        """Return what all readings of the memory share, computed once."""
        if self._reading is None:
            with torch.autocast(self.rows_B1.device.type, enabled=False):
                self._reading = memory.reading()
        return self._reading

    def select(self, rows: list[int]) -> None:
        """Keep these rows, some of them perhaps more than once."""
        device = self.rows_B1.device
        chosen_B = torch.tensor(rows, device=device)
        self.rows_B1 = torch.arange(len(rows), device=device)[:, None]
        self._layers = [[buffer[chosen_B] for buffer in layer] for layer in self._layers]

    def _layer(self, buffers: int, shape: tuple[int, ...], like: Tensor) -> list[Tensor]:
        """The buffers of the layer whose turn it is; layers come in the same order each time."""
        if self._next == len(self._layers):
            self._layers.append([like.new_zeros((len(self.rows_B1), *shape)) for _ in range(buffers)])
        self._next += 1
        return self._layers[self._next - 1]
