# ruff: noqa: D103 (the descriptions are in kernels/wgmma.py)
"""Where the operands of `wgmma` lie: the real 64-bit descriptors, and the swizzle on the bytes of shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.simulator.errors import SimulatorError
from kernels.simulator.shared import SharedMemory
from kernels.simulator.visibility import Seen

K_STEP = 16
_SWIZZLE_128 = 1 << 62
_EIGHT_ROWS = 1024 >> 4 << 32


def wgmma_descriptor(address: int) -> int:
    return (int(address) & 0x3FFFF) >> 4 | _SWIZZLE_128 | _EIGHT_ROWS | 1 << 16


def wgmma_descriptor_mn(address: int, box_bytes: int) -> int:
    return (int(address) & 0x3FFFF) >> 4 | _SWIZZLE_128 | _EIGHT_ROWS | int(box_bytes) >> 4 << 16


@dataclass
class Operand:
    """One operand of one step of a product, as a descriptor tells the hardware."""

    start: int
    leading_bytes: int
    """MN-major: from one 64 rows or columns to the next."""
    stride_bytes: int
    """From 8 lines of 128 bytes to the next 8."""
    mn_major: bool

    @classmethod
    def decode(cls, descriptor: int, mn_major: bool) -> Operand:
        """Take a 64-bit descriptor apart [PTX ISA: Matrix Descriptor Format]."""
        if descriptor >> 62 != 1 or descriptor >> 49 & 7:
            raise SimulatorError(f"descriptor {descriptor:#018x}: only the 128-byte swizzle from offset 0 is simulated")
        operand = cls(
            start=(descriptor & 0x3FFF) << 4,
            leading_bytes=(descriptor >> 16 & 0x3FFF) << 4,
            stride_bytes=(descriptor >> 32 & 0x3FFF) << 4,
            mn_major=mn_major,
        )
        if operand.start % 1024 >= 128:
            raise SimulatorError(
                f"descriptor {descriptor:#018x}: an operand starts in the first of 8 swizzled lines, at a multiple of "
                f"1024 bytes; {operand.start} does not"
            )
        return operand

    def addresses(self, n: int) -> np.ndarray:
        """Return the shared addresses of n rows (A) or columns (B) and 16 terms."""
        row, term = np.arange(n)[:, None], np.arange(K_STEP)[None, :]
        if self.mn_major:
            line, offset = term, row % 64 * 2 + row // 64 * self.leading_bytes
        else:
            line, offset = row, term * 2
        address = self.start + line // 8 * self.stride_bytes + line % 8 * 128 + offset
        return address ^ (address >> 7 & 7) << 4


def operand_addresses(
    shared: SharedMemory, descriptor: int, n: int, steps: int, mn_major: bool, all_seen: list[Seen]
) -> np.ndarray:
    """Return the shared addresses of an operand's elements of all steps, of shape (n, 16 * steps).

    `all_seen` says of which copies the threads know, of all of which each must know.

    Raises:
        SimulatorError: Some of it is not there yet, lies outside, or was written by a thread without a fence.
    """
    step = (16 * 128 if mn_major else 16 * 2) >> 4
    parts = [Operand.decode(descriptor + s * step, mn_major).addresses(n) for s in range(steps)]
    address = np.concatenate(parts, axis=1)
    first = int(address.min())
    shared.check_address(first, int(address.max()) + 2 - first, 2)
    for seen in all_seen:
        shared.check_arrived(address, seen)
    shared.check_fenced(address)
    return address


def bits_at(shared: SharedMemory, address: np.ndarray) -> np.ndarray:
    """Return the bfloat16 elements at shared addresses."""
    return shared.window[address].astype(np.uint16) | shared.window[address + 1].astype(np.uint16) << 8
