# ruff: noqa: D103 (the descriptions are in kernels/wgmma.py)
"""The stand-ins of `kernels.wgmma`.

A product reads its operands and gives its sums when the wait for it comes, the latest moment, or in reversed order at
once. Until then a thread holds accumulators that refuse to be read. A product is computed once for its warp group, in
float64, and rounded once; PTX leaves the order and precision of the sum to the hardware.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from kernels.simulator.barriers import GROUP_SIZE, group_collective
from kernels.simulator.descriptors import (  # noqa: F401
    K_STEP,
    bits_at,
    operand_addresses,
    wgmma_descriptor,
    wgmma_descriptor_mn,
)
from kernels.simulator.elements import widen
from kernels.simulator.errors import SimulatorError, frame_location
from kernels.simulator.execution import Values, current_thread, order_is_reversed

ROWS = 64

_THREAD = np.arange(GROUP_SIZE)
_UPPER_ROW = 16 * (_THREAD // 32) + _THREAD % 32 // 4
_FIRST_COLUMN = 2 * (_THREAD % 4)


def accumulator_places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column, each of shape (128, n), of every thread's n floats."""
    i = np.arange(n)
    return _UPPER_ROW[:, None] + 8 * (i >> 1 & 1), _FIRST_COLUMN[:, None] + 8 * (i // 4) + (i & 1)


# ---- products under way --------------------------------------------------------------------------------------------


class Product:
    """A product of a warp group: what it starts from, how to compute it, and its sums once it is done."""

    def __init__(self, before: Product | np.ndarray | None, compute: Callable[[], np.ndarray]) -> None:
        self._before = before
        self._compute = compute
        self.sums: np.ndarray | None = None
        self.continued = False

    def finish(self) -> None:
        """Compute the sums; those of the product before it are there."""
        if self.sums is None:
            start = self._before.sums if isinstance(self._before, Product) else self._before
            added = self._compute()
            self.sums = (added if start is None else added + start).astype(np.float32)
            self._before = self._compute = None


class UnreadableAccumulators(tuple):
    """What a thread holds while a product is under way: n registers that must not be touched."""

    product: Product

    def _refuse(self, *_):
        raise SimulatorError("accumulators are read before a wgmma_wait_for has let them through")

    __getitem__ = __iter__ = __add__ = __radd__ = __eq__ = _refuse
    __hash__ = None


class Products:
    """The products of each warp group of a block that are under way: the latest last."""

    def __init__(self) -> None:
        self.of_group: dict[int, list[Product]] = {}


def _under_way() -> list[Product]:
    """Return the products of the running thread's warp group that are under way."""
    thread = current_thread()
    return thread.block.unit(Products).of_group.setdefault(thread.rank // GROUP_SIZE, [])


def _same(values: Sequence, what: str) -> object:
    """Return what all threads of the warp group brought."""
    if any(value != values[0] for value in values):
        raise SimulatorError(f"{what} must be the same in all threads of a warp group")
    return values[0]


def _before(accumulators: Sequence, n: int) -> Product | np.ndarray:
    """Return what accumulators come from: a product under way, or the floats that the threads hold."""
    if any(len(acc) != n for acc in accumulators):
        raise SimulatorError(f"this product has {n} accumulators a thread, not {len(accumulators[0])}")
    under_way = {id(acc.product): acc.product for acc in accumulators if isinstance(acc, UnreadableAccumulators)}
    if not under_way:
        rows, columns = accumulator_places(n)
        held = np.empty((ROWS, 2 * n), np.float32)
        held[rows, columns] = np.array(accumulators, np.float32)
        return held
    if len(under_way) > 1 or not all(isinstance(acc, UnreadableAccumulators) for acc in accumulators):
        raise SimulatorError("the accumulators of a warp group come from different products")
    (product,) = under_way.values()
    if product.continued:
        raise SimulatorError("these accumulators went into another product already: use what it returned")
    product.continued = True
    return product


def _start(n: int, before: Product | np.ndarray | None, compute: Callable[[], np.ndarray]) -> Values:
    """Start a product of the running thread's warp group, and return each thread's accumulators."""
    product = Product(before, compute)
    _under_way().append(product)
    if order_is_reversed():
        product.finish()
    held = UnreadableAccumulators([np.float32(np.nan)] * n)
    held.product = product
    return dict.fromkeys(range(GROUP_SIZE), held)


def _operand(descriptors: Sequence, n: int, steps: int, mn_major: bool, seen: Sequence) -> Callable[[], np.ndarray]:
    """Check and claim an operand in shared memory; what is returned reads it, as float64, and ends the claim.

    `descriptors` and `seen` are those of all threads.
    """
    shared = current_thread().block.shared
    descriptor = int(_same(descriptors, "a descriptor"))
    all_seen = list({id(one): one for one in seen}.values())
    address = operand_addresses(shared, descriptor, n, steps, mn_major, all_seen)
    both_bytes = np.stack([address, address + 1])
    claim = shared.being_read.add(both_bytes, f"a product, started at {frame_location(sys._getframe())}")

    def read() -> np.ndarray:
        shared.being_read.remove(claim)
        return widen(bits_at(shared, address)).astype(np.float64)

    return read


def _ss(name: str, columns: int, steps: int, a_mn: bool, b_mn: bool, brought: tuple):
    """Start a product of two operands in shared memory; `brought` is (acc or None, descriptors, keep)."""

    def combine(values: Values) -> Values:
        accumulators, a, b, keep, seen = zip(*(values[rank] for rank in range(GROUP_SIZE)), strict=True)
        before = _before(accumulators, columns // 2) if _same([bool(k) for k in keep], "keep") else None
        read_a = _operand(a, ROWS, steps, a_mn, seen)
        read_b = _operand(b, columns, steps, b_mn, seen)
        return _start(columns // 2, before, lambda: read_a() @ read_b().T)

    return group_collective(name, (*brought, current_thread().seen), combine)


def wgmma_ss(columns, steps=4, a_mn_major=False, b_mn_major=False):
    def product(acc, descriptor_a, descriptor_b, keep):
        brought = (acc, descriptor_a, descriptor_b, keep)
        return _ss("wgmma_ss", columns, steps, a_mn_major, b_mn_major, brought)

    return product


def wgmma_ss_new(columns, steps=4, a_mn_major=False, b_mn_major=False):
    def product(descriptor_a, descriptor_b):
        brought = (None, descriptor_a, descriptor_b, 0)
        return _ss("wgmma_ss_new", columns, steps, a_mn_major, b_mn_major, brought)

    return product


def _a_in_registers(words: np.ndarray) -> np.ndarray:
    """Return A, of shape (64, 16 * steps), of which each of 128 threads holds 4 words a step."""
    j = np.arange(words.shape[1])
    rows = _UPPER_ROW[:, None] + 8 * (j & 1)
    terms = _FIRST_COLUMN[:, None] + 16 * (j // 4) + 8 * (j >> 1 & 1)
    a_MK = np.empty((ROWS, 4 * words.shape[1]), np.uint16)
    a_MK[rows, terms], a_MK[rows, terms + 1] = words & 0xFFFF, words >> 16
    return widen(a_MK).astype(np.float64)


def _rs(name: str, columns: int, steps: int, b_mn: bool, brought: tuple):
    """Start a product of A in registers and B in shared memory; `brought` is (acc or None, words, descriptor)."""

    def combine(values: Values) -> Values:
        accumulators, words, b, seen = zip(*(values[rank] for rank in range(GROUP_SIZE)), strict=True)
        a_MK = _a_in_registers(np.array(words, np.uint32))
        if a_MK.shape[1] != K_STEP * steps:
            raise SimulatorError(f"{steps} steps need {4 * steps} words of A a thread, not {a_MK.shape[1] // 4}")
        before = _before(accumulators, columns // 2) if accumulators[0] is not None else None
        read_b = _operand(b, columns, steps, b_mn, seen)
        return _start(columns // 2, before, lambda: a_MK @ read_b().T)

    return group_collective(name, (*brought, current_thread().seen), combine)


def wgmma_rs(columns, steps=4, b_mn_major=False):
    def product(acc, a_words, descriptor_b):
        return _rs("wgmma_rs", columns, steps, b_mn_major, (acc, a_words, descriptor_b))

    return product


# ---- order ---------------------------------------------------------------------------------------------------------


def _finish(n_pending: int) -> None:
    products = _under_way()
    while len(products) > n_pending:
        products.pop(0).finish()


def wgmma_wait(n_pending: int) -> None:
    def combine(values: Values) -> Values:
        _finish(n_pending)
        return {}

    group_collective("wgmma_wait", None, combine)


def _let_through(accumulators: list, n: int, n_pending: int) -> Values:
    """Finish products, and give each thread its floats."""
    _finish(n_pending)
    product = _before(accumulators, n)
    if isinstance(product, np.ndarray):
        return dict(enumerate(accumulators))
    if product.sums is None or product in _under_way():
        raise SimulatorError(f"a wait that leaves {n_pending} groups under way does not end the product of these")
    rows, columns = accumulator_places(n)
    return dict(enumerate(map(tuple, product.sums[rows, columns])))


def wgmma_wait_for(n, n_pending=0):
    def wait(acc):
        def combine(values: Values) -> Values:
            return _let_through([values[rank] for rank in range(GROUP_SIZE)], n, n_pending)

        return group_collective("wgmma_wait_for", acc, combine)

    return wait
