# ruff: noqa: D103 (the descriptions are in kernels/ptx.py)
"""The stand-ins of `kernels.ptx` in the simulator: the same names, arguments and results, in NumPy.

An operation of the whole warp is computed once for its 32 lanes. The tensor-core product is summed in float64 and
rounded once; PTX leaves the order and precision of the sum to the hardware.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from kernels.simulator.api import warp_collective
from kernels.simulator.execution import FULL_MASK, Values, current_thread, order_is_reversed
from kernels.simulator.memory import SimulatedArray

_LANES = np.arange(32)
_GROUP = _LANES >> 2
_PAIR = 2 * (_LANES & 3)

# where lane l's words and floats lie in the tiles of mma.m16n8k16
_A_ROWS = _GROUP[:, None] + [0, 8, 0, 8]
_A_COLUMNS = _PAIR[:, None] + [0, 0, 8, 8]
_B_ROWS = _PAIR[:, None] + [0, 8]
_C_ROWS = _GROUP[:, None] + [0, 0, 8, 8]
_C_COLUMNS = _PAIR[:, None] + [0, 1, 0, 1]


def _as_float32(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def float_bits(x) -> int:
    return struct.unpack("I", np.float32(x).tobytes())[0]


def bits_float(bits: int) -> np.float32:
    return np.frombuffer(struct.pack("I", bits & 0xFFFFFFFF), np.float32)[0]


def float_to_bf16(x) -> int:
    bits = float_bits(x)
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF  # every NaN becomes the canonical one
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def bf16_to_float(bits: int) -> np.float32:
    return bits_float(bits << 16)


def pack_bf16x2(low, high) -> int:
    return float_to_bf16(low) | float_to_bf16(high) << 16


def unpack_bf16x2(packed: int) -> tuple[np.float32, np.float32]:
    return bits_float(packed << 16), bits_float(packed & 0xFFFF0000)


_SMALLEST_NORMAL = np.float32(2.0**-126)


def _flush(x) -> np.float32:
    """Turn a subnormal number into zero, as `.ftz` does."""
    x = np.float32(x)
    return np.copysign(np.float32(0), x) if abs(x) < _SMALLEST_NORMAL else x


def exp2(x) -> np.float32:
    x = float(x)
    if x < -126:
        return np.float32(0)  # a subnormal result
    return np.float32(math.inf if x >= 128 else math.exp2(x))


def log2(x) -> np.float32:
    return np.log2(_flush(x))


def maximum(x, y) -> np.float32:
    return np.fmax(np.float32(x), np.float32(y))


def reciprocal(x) -> np.float32:
    return _flush(np.float32(1) / _flush(x))


def load_128(array: SimulatedArray, index: int) -> tuple[int, ...]:
    return tuple(array.vector(index, 16).view(np.uint32).tolist())


def load_128_streaming(array: SimulatedArray, index: int) -> tuple[int, ...]:
    return load_128(array, index)


def store_128(array: SimulatedArray, index: int, words: tuple[int, ...]) -> None:
    array.vector(index, 16, is_store=True).view(np.uint32)[:] = words


def store_128_streaming(array: SimulatedArray, index: int, words: tuple[int, ...]) -> None:
    store_128(array, index, words)


def shared_address(array: SimulatedArray, index: int) -> int:
    return current_thread().block.shared.address(array, index)


def load_shared_128(address: int) -> tuple[int, ...]:
    return tuple(current_thread().block.shared.bytes_at(address, 16).view(np.uint32).tolist())


def store_shared_32(address: int, word: int) -> None:
    _store_words(address, (word,))


def store_shared_64(address: int, low: int, high: int) -> None:
    _store_words(address, (low, high))


def _store_words(address: int, words: tuple[int, ...]) -> None:
    shared = current_thread().block.shared
    n_bytes = 4 * len(words)
    shared.bytes_at(address, n_bytes).view(np.uint32)[:] = words
    shared.note_written(slice(int(address), int(address) + n_bytes))


def cp_async_16(address: int, source: SimulatedArray, index: int, n_bytes: int) -> None:
    thread = current_thread()
    destination = thread.block.shared.bytes_at(address, 16)
    n_elements = -(-n_bytes // source.itemsize)
    if n_bytes == 16:
        read = source.vector(index, 16)
    else:
        read = source.data[index : index + n_elements]
        if n_elements:
            source[index], source[index + n_elements - 1]  # reports what is out of bounds

    def copy() -> None:
        destination[:] = 0
        destination[:n_bytes] = read.view(np.uint8)[:n_bytes]

    if order_is_reversed():
        copy()
    else:
        thread.copies[-1].append(copy)


def cp_async_commit() -> None:
    current_thread().copies.append([])


def cp_async_wait(n_pending: int) -> None:
    copies = current_thread().copies
    while len(copies) - 1 > n_pending:
        for copy in copies.pop(0):
            copy()


def _ldmatrix(address: int, transpose: bool) -> tuple[int, ...]:
    shared = current_thread().block.shared

    def combine(addresses: Values) -> Values:
        rows = [shared.bytes_at(addresses[lane], 16) for lane in range(32)]
        matrices = np.stack(rows).view(np.uint16).reshape(4, 8, 8)
        if transpose:
            matrices = matrices.transpose(0, 2, 1)
        low, high = matrices[:, _GROUP, _PAIR].astype(np.uint32), matrices[:, _GROUP, _PAIR + 1].astype(np.uint32)
        return dict(enumerate(map(tuple, (low | high << 16).T.tolist())))

    name = "ldmatrix_x4_trans" if transpose else "ldmatrix_x4"
    return warp_collective(name, FULL_MASK, address, combine)


def ldmatrix_x4(address: int) -> tuple[int, ...]:
    return _ldmatrix(address, transpose=False)


def ldmatrix_x4_trans(address: int) -> tuple[int, ...]:
    return _ldmatrix(address, transpose=True)


def _mma_m16n8k16(values: Values) -> Values:
    words = np.array([(*values[lane][0], values[lane][1], values[lane][2]) for lane in range(32)], np.uint32)
    c = np.array([values[lane][3] for lane in range(32)], np.float32)
    low, high = _as_float32(words << 16), _as_float32(words & 0xFFFF0000)
    a_mk, b_kn, c_mn = np.empty((16, 16)), np.empty((16, 8)), np.empty((16, 8))
    a_mk[_A_ROWS, _A_COLUMNS], a_mk[_A_ROWS, _A_COLUMNS + 1] = low[:, :4], high[:, :4]
    b_kn[_B_ROWS, _GROUP[:, None]], b_kn[_B_ROWS + 1, _GROUP[:, None]] = low[:, 4:], high[:, 4:]
    c_mn[_C_ROWS, _C_COLUMNS] = c
    out = (a_mk @ b_kn + c_mn).astype(np.float32)[_C_ROWS, _C_COLUMNS]
    return dict(enumerate(map(tuple, out)))


def mma_m16n8k16_bf16(a: tuple[int, ...], b0: int, b1: int, c: tuple) -> tuple[np.float32, ...]:
    return warp_collective("mma_m16n8k16_bf16", FULL_MASK, (a, b0, b1, c), _mma_m16n8k16)
