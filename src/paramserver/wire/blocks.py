"""Tensors in blocks of 256 small integers with one scale each: int8 and int4.

In a block, scale = max|x| / 127 (int8) or / 7 (int4), and each element travels as the integer
nearest to x / scale, so that what arrives differs by half a scale at most. The bytes are the scales
of all blocks (float32, little endian), then the integers: one byte each, or two to a byte, the
first in the lower half. int8 costs 1.016 bytes an element, int4 0.516.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paramserver.types import ITEM_SIZES

BLOCK = 256
LEVELS = {"int8_block": 127, "int4_block": 7}
_TINY = torch.finfo(torch.float32).tiny  # smaller scales lose digits of their own


def wire_bytes(elements: int, dtype: str) -> int:
    """Bytes of so many elements as they travel, in blocks or as they are."""
    if dtype not in LEVELS:
        return elements * ITEM_SIZES[dtype]
    codes = elements if dtype == "int8_block" else (elements + 1) // 2
    return codes + 4 * _blocks(elements)


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def pack(values: Tensor, dtype: str) -> Tensor:
    """The bytes (uint8) of a floating CPU tensor of one dimension; finite values only."""
    elements, count = values.numel(), _blocks(values.numel())
    exact = values if values.dtype == torch.float64 else values.float()
    padded = torch.nn.functional.pad(exact, (0, count * BLOCK - elements)).view(count, BLOCK)
    highest = padded.abs().amax(1) if count else padded.new_empty(0)
    scales = (highest / LEVELS[dtype]).float().clamp_min(_TINY).masked_fill(highest == 0, 1.0)
    codes = (padded / scales.unsqueeze(1)).round_().clamp_(-LEVELS[dtype], LEVELS[dtype])
    whole = codes.to(torch.int8).view(-1)[: elements + elements % 2].view(torch.uint8)
    if dtype == "int4_block":
        whole = (whole[0::2] & 15) | (whole[1::2] << 4)
    return torch.cat([scales.view(torch.uint8), whole[: wire_bytes(elements, dtype) - 4 * count]])


def unpack(packed: Tensor, dtype: str, elements: int) -> Tensor:
    """The elements (float32) in so many bytes; ``packed`` has ``wire_bytes`` of them."""
    count = _blocks(elements)
    head, rest = packed[: 4 * count], packed[4 * count :]
    scales = (head.clone() if head.data_ptr() % 4 else head).view(torch.float32)
    if dtype == "int4_block":
        lower = (rest << 4).view(torch.int8) >> 4  # the shift back brings the sign
        codes = torch.stack((lower, rest.view(torch.int8) >> 4), 1).view(-1)[:elements]
    else:
        codes = rest.view(torch.int8)
    padded = torch.zeros(count * BLOCK)
    padded[:elements] = codes
    padded.view(count, BLOCK).mul_(scales.unsqueeze(1))
    return padded[:elements]
