"""Every instruction lane by lane against an independent formula: in the simulator, and on a GPU where there is one."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from kernels import SIMULATED, host, ptx  # must come before numba

from numba import cuda, float32, uint16, uint32  # isort: skip

RNG = np.random.default_rng(1)
LANES = np.arange(32)
SPECIAL_BITS = np.array(
    [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x3F808000, 0x3F818000, 0x7F7FFFFF], np.uint32
)


def random_floats(n: int) -> np.ndarray:
    """Floats of all magnitudes, with infinities, NaN, ties of bfloat16 rounding, the greatest and the smallest."""
    bits = RNG.integers(0, 2**32, n, dtype=np.uint32)
    bits[: SPECIAL_BITS.size] = SPECIAL_BITS
    return bits.view(np.float32)


def run(kernel, n_threads: int, *arguments: np.ndarray) -> list[np.ndarray]:
    """Launch one block and return the arguments as they are afterwards."""
    arrays = [host.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
    kernel[1, n_threads](*arrays)
    return [host.to_host(a) for a in arrays if not isinstance(a, int)]


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Nearest of the two neighbouring bfloat16, in float64 arithmetic; the even one of two as near."""
    bits = x.view(np.uint32).astype(np.uint64)
    below, above = bits >> 16, (bits >> 16) + 1
    middle = bits & 0xFFFF
    chosen = np.where((middle > 0x8000) | ((middle == 0x8000) & (below % 2 == 1)), above, below)
    return np.where(np.isnan(x), 0x7FFF, chosen).astype(np.uint16)


def test_bits_of_floats_both_ways():
    @cuda.jit
    def kernel(bits, floats, out):
        t = cuda.threadIdx.x
        bits[t] = ptx.float_bits(floats[t])
        out[t] = ptx.bits_float(uint32(bits[t]) if not SIMULATED else bits[t])

    floats = random_floats(64)
    bits, _, out = run(kernel, 64, np.zeros(64, np.uint32), floats, np.zeros(64, np.float32))
    np.testing.assert_array_equal(bits, floats.view(np.uint32))
    np.testing.assert_array_equal(out.view(np.uint32)[5:], floats.view(np.uint32)[5:])


def test_bf16_conversions():
    @cuda.jit
    def kernel(words, singles, back, pairs, x):
        t = cuda.threadIdx.x
        words[t] = ptx.pack_bf16x2(x[2 * t], x[2 * t + 1])
        singles[t] = ptx.float_to_bf16(x[t])
        back[t] = ptx.bf16_to_float(singles[t])
        low, high = ptx.unpack_bf16x2(words[t])
        pairs[2 * t] = low
        pairs[2 * t + 1] = high

    n = 256
    x = random_floats(2 * n)
    words, singles, back, pairs, _ = run(
        kernel,
        n,
        np.zeros(n, np.uint32),
        np.zeros(n, np.uint16),
        np.zeros(n, np.float32),
        np.zeros(2 * n, np.float32),
        x,
    )
    expected = round_to_bf16(x)
    np.testing.assert_array_equal(words.view(np.uint16), expected)
    np.testing.assert_array_equal(singles, expected[:n])
    np.testing.assert_array_equal(back, host.from_bf16(expected[:n]))
    np.testing.assert_array_equal(pairs, host.from_bf16(expected))


def test_exp2_and_reciprocal():
    @cuda.jit
    def kernel(powers, inverses, x):
        t = cuda.threadIdx.x
        powers[t] = ptx.exp2(x[t])
        inverses[t] = ptx.reciprocal(x[t])

    x = np.concatenate([RNG.uniform(-120, 120, 250), [0.0, np.inf, -np.inf, 1e-40, -200, 200]]).astype(np.float32)
    powers, inverses, _ = run(kernel, x.size, np.zeros_like(x), np.zeros_like(x), x)
    with np.errstate(divide="ignore", over="ignore"):
        flushed = np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64)
        expected_powers = np.where(flushed < -126, 0, 2.0**flushed)
        expected_powers[expected_powers > np.finfo(np.float32).max] = np.inf
        np.testing.assert_allclose(powers, expected_powers, rtol=2.0**-21)
        np.testing.assert_allclose(inverses, 1 / flushed, rtol=2.0**-22)


def test_log2_and_maximum():
    @cuda.jit
    def kernel(logarithms, greater, x, y):
        t = cuda.threadIdx.x
        logarithms[t] = ptx.log2(x[t])
        greater[t] = ptx.maximum(x[t], y[t])

    x = np.concatenate([2.0 ** RNG.uniform(-120, 120, 250), [0.0, np.inf, 1.0, 1e-40, -1.0, np.nan]]).astype(np.float32)
    y = x[::-1].copy()
    logarithms, greater, *_ = run(kernel, x.size, np.zeros_like(x), np.zeros_like(x), x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log2(np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64))
    np.testing.assert_allclose(logarithms, expected, rtol=2.0**-21, atol=2.0**-21)
    np.testing.assert_array_equal(greater, np.fmax(x, y))


def test_128_bit_loads_from_shared_memory():
    @cuda.jit
    def kernel(words, inp):
        tile = cuda.shared.array(128, float32, 16)
        t = cuda.threadIdx.x
        for i in range(4):
            tile[t + 32 * i] = inp[t + 32 * i]
        cuda.syncthreads()
        four = ptx.load_shared_128(ptx.shared_address(tile, 4 * t))
        for i in range(4):
            words[4 * t + i] = four[i]

    inp = RNG.standard_normal(128).astype(np.float32)
    words, _ = run(kernel, 32, np.zeros(128, np.uint32), inp)
    np.testing.assert_array_equal(words, inp.view(np.uint32))


def test_128_bit_loads_and_stores():
    @cuda.jit
    def kernel(out, out_streaming, inp):
        t = cuda.threadIdx.x
        words = ptx.load_128(inp, 8 * t)
        ptx.store_128(out, 8 * t, (words[3], words[2], words[1], words[0]))
        ptx.store_128_streaming(out_streaming, 8 * t, ptx.load_128_streaming(inp, 8 * t))

    inp = RNG.integers(0, 2**16, 256, dtype=np.uint16)
    out, streamed, _ = run(kernel, 32, np.zeros_like(inp), np.zeros_like(inp), inp)
    np.testing.assert_array_equal(out.view(np.uint32).reshape(32, 4), inp.view(np.uint32).reshape(32, 4)[:, ::-1])
    np.testing.assert_array_equal(streamed, inp)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    load = ptx.ldmatrix_x4_trans if transposed else ptx.ldmatrix_x4

    @cuda.jit
    def kernel(out, inp):
        tile = cuda.shared.array(512, uint16, 16)
        lane = cuda.threadIdx.x
        for j in range(16):  # lane l fills row l, of 16 elements
            tile[16 * lane + j] = inp[16 * lane + j]
        cuda.syncthreads()
        # row r of matrix m is at element 16 r + 128 m: its address comes from lane 8 m + r
        words = load(ptx.shared_address(tile, 16 * (lane & 7) + 128 * (lane >> 3)))
        for m in range(4):
            out[4 * lane + m] = words[m]

    inp = RNG.integers(0, 2**16, 512, dtype=np.uint16)
    out, _ = run(kernel, 32, np.zeros(128, np.uint32), inp)
    matrices = inp.reshape(4, 8, 16)[:, :, :8]
    for lane in LANES:
        for m in range(4):
            row, column = lane // 4, 2 * (lane % 4)
            matrix = matrices[m].T if transposed else matrices[m]
            expected = int(matrix[row, column]) + (int(matrix[row, column + 1]) << 16)
            assert out[4 * lane + m] == expected, (lane, m)


def test_mma_m16n8k16():
    @cuda.jit
    def kernel(out_mn, a_words_mk, b_words_nk, c_mn):
        lane = cuda.threadIdx.x
        g, q = lane >> 2, lane & 3
        a = (a_words_mk[g, q], a_words_mk[g + 8, q], a_words_mk[g, q + 4], a_words_mk[g + 8, q + 4])
        b0, b1 = b_words_nk[g, q], b_words_nk[g, q + 4]
        c = (c_mn[g, 2 * q], c_mn[g, 2 * q + 1], c_mn[g + 8, 2 * q], c_mn[g + 8, 2 * q + 1])
        d = ptx.mma_m16n8k16_bf16(a, b0, b1, c)
        out_mn[g, 2 * q] = d[0]
        out_mn[g, 2 * q + 1] = d[1]
        out_mn[g + 8, 2 * q] = d[2]
        out_mn[g + 8, 2 * q + 1] = d[3]

    a_mk = host.to_bf16(RNG.standard_normal((16, 16)))
    b_kn = host.to_bf16(RNG.standard_normal((16, 8)))
    c_mn = RNG.standard_normal((16, 8)).astype(np.float32)
    a_words, b_words = a_mk.view(np.uint32), np.ascontiguousarray(b_kn.T).view(np.uint32)
    out, *_ = run(kernel, 32, np.zeros((16, 8), np.float32), a_words, b_words, c_mn)
    expected = host.from_bf16(a_mk).astype(np.float64) @ host.from_bf16(b_kn).astype(np.float64) + c_mn
    np.testing.assert_allclose(out, expected, rtol=0, atol=2.0**-20 * np.abs(expected).max())


@pytest.mark.parametrize("n_bytes", [16, 6, 0])
def test_cp_async(n_bytes):
    @cuda.jit
    def kernel(out, inp, n_bytes):
        tile = cuda.shared.array(16, uint16, 16)
        if cuda.threadIdx.x == 0:
            ptx.cp_async_16(ptx.shared_address(tile, 0), inp, 8, 16)
            ptx.cp_async_commit()
            ptx.cp_async_16(ptx.shared_address(tile, 8), inp, 0, n_bytes)
            ptx.cp_async_commit()
            ptx.cp_async_wait(1)
            ptx.cp_async_wait(0)
        cuda.syncthreads()
        out[cuda.threadIdx.x] = tile[cuda.threadIdx.x]

    inp = RNG.integers(1, 2**16, 16, dtype=np.uint16)
    out, _ = run(kernel, 16, np.zeros(16, np.uint16), inp, n_bytes)
    expected = np.concatenate([inp[8:], inp[:8] * (np.arange(8) < n_bytes // 2)])
    np.testing.assert_array_equal(out, expected)


def test_every_instruction_is_documented_with_its_manual_section():
    for name, operation in vars(ptx).items():
        if (
            getattr(operation, "__module__", "").startswith("kernels.simulator")
            or type(operation).__name__ == "_Intrinsic"
        ):
            assert "[" in operation.__doc__ and "]" in operation.__doc__, name


@pytest.mark.skipif(not SIMULATED, reason="reads the stand-ins")
def test_stand_ins_take_the_arguments_of_the_instructions():
    source = inspect.getsource(ptx)
    from kernels.simulator import instructions

    names = [
        line[4:].split("(")[0] for line in source.splitlines() if line.startswith("def ") and "typing_context" in line
    ]
    assert len(names) >= 18
    for name in names:
        head = source.split(f"def {name}(typing_context")[1].split(")")[0]
        arguments = [part.strip() for part in head.split(",") if part.strip()]
        assert list(inspect.signature(getattr(instructions, name)).parameters) == arguments, name


# ---- together: a block of a tensor-core matrix product ---------------------------------------------------------------

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 32
PITCH_A, PITCH_B = BLOCK_K + 8, BLOCK_N + 8  # rows padded by 16 bytes, so that ldmatrix meets no bank conflict
TILE_A, TILE_B = BLOCK_M * PITCH_A, BLOCK_K * PITCH_B
SHARED_A, SHARED_B = 2 * TILE_A, 2 * TILE_B


@cuda.jit(device=True)
def start_copies(tile_a, tile_b, a_MK, b_KN, k, K, N):
    """Start the copies of one stage: 256 threads, two 16-byte pieces of each operand."""
    stage = (k // BLOCK_K) & 1
    for half in range(2):
        piece = cuda.threadIdx.x + 256 * half
        row, column = piece >> 2, (piece & 3) * 8
        ptx.cp_async_16(
            ptx.shared_address(tile_a, stage * TILE_A + row * PITCH_A + column), a_MK, row * K + k + column, 16
        )
        row, column = piece >> 4, (piece & 15) * 8
        ptx.cp_async_16(
            ptx.shared_address(tile_b, stage * TILE_B + row * PITCH_B + column), b_KN, (k + row) * N + column, 16
        )
    ptx.cp_async_commit()


@cuda.jit
def block_product(out_MN, a_MK, b_KN, K, N):
    """One block, 8 warps in 2 x 4, each 64 x 32 outputs; two stages of cp.async; flat arrays."""
    tile_a = cuda.shared.array(SHARED_A, uint16, 16)
    tile_b = cuda.shared.array(SHARED_B, uint16, 16)
    sums = cuda.local.array((4, 4, 4), float32)
    for i in range(4):
        for j in range(4):
            for r in range(4):
                sums[i, j, r] = float32(0)
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    m, n = (warp & 1) * 64, (warp >> 1) * 32
    start_copies(tile_a, tile_b, a_MK, b_KN, 0, K, N)
    for k in range(0, K, BLOCK_K):
        if k + BLOCK_K < K:
            start_copies(tile_a, tile_b, a_MK, b_KN, k + BLOCK_K, K, N)
            ptx.cp_async_wait(1)
        else:
            ptx.cp_async_wait(0)
        cuda.syncthreads()  # the copies of all threads are there
        stage = (k // BLOCK_K) & 1
        for step in range(0, BLOCK_K, 16):
            row_b = stage * TILE_B + (step + (lane & 15)) * PITCH_B + n + (lane >> 4) * 8
            b_left = ptx.ldmatrix_x4_trans(ptx.shared_address(tile_b, row_b))
            b_right = ptx.ldmatrix_x4_trans(ptx.shared_address(tile_b, row_b + 16))
            for i in range(4):
                row_a = stage * TILE_A + (m + 16 * i + (lane & 15)) * PITCH_A + step + (lane >> 4) * 8
                a = ptx.ldmatrix_x4(ptx.shared_address(tile_a, row_a))
                for j in range(4):
                    b = b_left if j < 2 else b_right
                    c = (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3])
                    d = ptx.mma_m16n8k16_bf16(a, b[2 * (j & 1)], b[2 * (j & 1) + 1], c)
                    for r in range(4):
                        sums[i, j, r] = d[r]
        cuda.syncthreads()  # all have read the stage that is copied into next
    for i in range(4):
        for j in range(4):
            for r in range(4):
                row = m + 16 * i + (lane >> 2) + 8 * (r >> 1)
                out_MN[row * N + n + 8 * j + 2 * (lane & 3) + (r & 1)] = sums[i, j, r]


def test_tensor_core_block_128x128x64():
    K = 64
    a, b = host.to_bf16(RNG.standard_normal((128, K))), host.to_bf16(RNG.standard_normal((K, 128)))
    out, *_ = run(block_product, 256, np.zeros(128 * 128, np.float32), a.ravel(), b.ravel(), K, 128)
    expected = host.from_bf16(a).astype(np.float64) @ host.from_bf16(b)
    np.testing.assert_allclose(out.reshape(128, 128), expected, rtol=0, atol=1e-5)
