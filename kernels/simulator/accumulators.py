# ruff: noqa: D103 (the descriptions are in kernels/accumulators.py)
"""The stand-ins of `kernels.accumulators`."""

from __future__ import annotations

import numpy as np

from kernels.simulator.api import warp_collective
from kernels.simulator.elements import narrow
from kernels.simulator.execution import FULL_MASK, current_thread

ROW_BYTES = 128
BOX_BYTES = 64 * ROW_BYTES


def zero_accumulators(n):
    zeros = (np.float32(0),) * n
    return lambda: zeros


def zero_words(n):
    return lambda: (0,) * n


def _pack(floats) -> np.ndarray:
    bits = narrow(np.array(floats, np.float32)).astype(np.uint32)
    return bits[..., 0::2] | bits[..., 1::2] << 16


def pack_accumulators(n):
    return lambda acc: tuple(_pack(acc).tolist())


# ---- boxes ---------------------------------------------------------------------------------------------------------


def _word_addresses(box: int, thread: int, byte: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the swizzled addresses of bytes of a thread's upper and lower row."""
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * lower
    return box + ROW_BYTES * row + (byte ^ (row & 7) << 4)


def _check_box(name: str, box: int, thread: int) -> None:
    """Check that the warp is together and the box lies where it may."""
    shared = current_thread().block.shared
    shared.check_address(int(box), BOX_BYTES, 1024)
    shared.check_arrived(slice(int(box), int(box) + BOX_BYTES))
    warp_collective(name, FULL_MASK, None, None)


def _store_words(name: str, words: np.ndarray, box: int, thread: int) -> None:
    """Store a thread's words of two bfloat16: word i is of row (i & 1) and of columns 8 * (i // 2) on."""
    _check_box(name, box, thread)
    i = np.arange(len(words))
    addresses = _word_addresses(int(box), int(thread), 16 * (i // 2) + 4 * (thread % 4), i & 1)
    _store(words, addresses)


def _store(words: np.ndarray, addresses: np.ndarray) -> None:
    shared = current_thread().block.shared
    everywhere = addresses[:, None] + np.arange(words.itemsize)
    shared.window[everywhere] = words.view(np.uint8).reshape(everywhere.shape)
    shared.note_written(everywhere)


def store_bf16_box(n, first=0, columns=64):
    def store(acc, box, thread):
        words = _pack(acc[first // 2 : (first + columns) // 2])
        _store_words("store_bf16_box", words, box, thread)

    return store


def store_words_box(n, first=0, columns=64):
    def store(words, box, thread):
        chosen = np.array(words[first // 4 : (first + columns) // 4], np.uint32)
        _store_words("store_words_box", chosen, box, thread)

    return store


def store_float_box(n, first=0):
    def store(acc, box, thread):
        _check_box("store_float_box", box, thread)
        i = np.arange(0, 16, 2)
        pairs = np.array(acc[first // 2 : first // 2 + 16], np.float32).view(np.uint64)
        byte = 32 * (i // 4) + 8 * (thread % 4)
        _store(pairs, _word_addresses(int(box), int(thread), byte, i >> 1 & 1))

    return store


def load_words_box(box: int, thread: int) -> tuple[int, ...]:
    _check_box("load_words_box", box, thread)
    i = np.arange(16)
    addresses = _word_addresses(int(box), int(thread), 16 * (i // 2) + 4 * (thread % 4), i & 1)
    shared = current_thread().block.shared
    return tuple(int(shared.bytes_at(address, 4).view(np.uint32)[0]) for address in addresses.tolist())


def load_columns(n):
    def load(address: int) -> tuple[np.float32, ...]:
        shared = current_thread().block.shared
        pairs = [shared.bytes_at(address + 32 * j, 8).view(np.float32) for j in range(n // 4)]
        return tuple(x for pair in pairs for x in pair)

    return load
