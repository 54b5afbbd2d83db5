"""What `test_compile_cache.py` needs the real Numba CUDA for: run by it in processes of their own, without a GPU.

`fingerprints` prints a fingerprint by name; `keep` compiles a kernel or loads it, and prints what came of it;
`ahead` lets workers compile what launches need.
"""

import functools
import json
import sys
from types import SimpleNamespace

import numpy as np
from numba import cuda, float32, int32, njit

import kernels
from kernels import ptx
from kernels.fingerprint import NoFingerprintError, fingerprint
from kernels.intrinsics import device_operation, on_registers
from kernels.launch import Launch
from kernels.memory import cast_kernel, zero_kernel
from kernels.precompile import Job, compile_and_keep, compile_in_processes, missing, pretend_gpu
from kernels.registry import kernel

from numba.cuda import types  # isort: skip

SCALE = 2
VALUES = np.arange(3)


def make(factor, helper=None, where=None):
    """A kernel that captured a value, another function and a module."""

    def scale_kernel(x):
        x[0] = x[0] * factor + (helper(x[0]) if helper is not None else 0)
        if where is not None:
            x[0] = where.bits_float(where.float_bits(x[0]))

    return scale_kernel


def make_device(step, **options):
    @cuda.jit(device=True, **options)
    def add_device(x):
        return x + step

    return add_device


def make_operation(name):
    @device_operation("kernels.simulator.instructions")
    def operation(typing_context, x):
        return types.float32(types.float32), on_registers(f"{name} $0, $1;", "f", "f")

    return operation


def make_caller(depth, step):
    """A device function that calls others, `depth` of them one inside the other."""
    called = make_device(step) if depth == 0 else make_caller(depth - 1, step)

    @cuda.jit(device=True)
    def call_device(x):
        return called(x)

    return call_device


def uses_global(x):
    x[0] = SCALE * VALUES[1]


def uses_nested_module(x):
    x[0] = kernels.ptx.float_bits(x[0])


def calls_itself(n):
    return 1 if n == 0 else calls_itself(n - 1)


def fingerprints():
    """Return fingerprints; those whose names begin with "same" must be equal, all others differ."""
    global SCALE
    found = {
        "same 1": fingerprint(make(2)),
        "same 2": fingerprint(make(2)),
        "captured 3": fingerprint(make(3)),
        "captured 2.0": fingerprint(make(2.0)),
        "captured 0.0": fingerprint(make(0.0)),
        "captured -0.0": fingerprint(make(-0.0)),
        "captured True": fingerprint(make(True)),
        "captured 1": fingerprint(make(1)),
        "captured float32": fingerprint(make(np.float32(2))),
        "captured type": fingerprint(make(float32)),
        "captured other type": fingerprint(make(int32)),
        "captured tuple": fingerprint(make((1, 2))),
        "captured nested tuple": fingerprint(make(((1, 2),))),
        "captured array": fingerprint(make(np.arange(2.0))),
        "captured other array": fingerprint(make(np.arange(2.0) + 1)),
        "captured namespace": fingerprint(make(SimpleNamespace(a=1))),
        "device function": fingerprint(make(2, make_device(1))),
        "device function that captured another value": fingerprint(make(2, make_device(2))),
        "device function with options": fingerprint(
            make(2, cuda.jit(device=True, fastmath=True)(make_device(1).py_func))
        ),
        "far device function": fingerprint(make(2, make_caller(3, 1))),
        "far device function that captured another value": fingerprint(make(2, make_caller(3, 2))),
        "intrinsic": fingerprint(make(2, make_operation("ex2.approx.ftz.f32"))),
        "other intrinsic": fingerprint(make(2, make_operation("lg2.approx.ftz.f32"))),
        "module": fingerprint(make(2, None, ptx)),
        "jit": fingerprint(cuda.jit(make(2))),
        "jit with options": fingerprint(cuda.jit(launch_bounds=64)(make(2))),
        "recursion": fingerprint(calls_itself),
        "global": fingerprint(uses_global),
    }
    SCALE = 3
    found["other global"] = fingerprint(uses_global)
    VALUES[1] = 7
    found["other values of a global array"] = fingerprint(uses_global)
    original, ptx.float_bits = ptx.float_bits, make_operation("neg.f32")
    found["member of a module set anew"] = fingerprint(make(2, None, ptx))
    found["member of a module in a module set anew"] = fingerprint(uses_nested_module)
    ptx.float_bits = original
    found["member of a module in a module"] = fingerprint(uses_nested_module)
    found["none"] = [_why_none(helper) for helper in (iter([1]), njit(lambda x: x), functools.partial(print, 2))]
    return found


def _why_none(helper):
    try:
        return f"it has one: {fingerprint(make(2, helper))}"
    except NoFingerprintError as problem:
        return str(problem)


class NoContext:
    """What Numba sets up before it loads a kernel."""

    def refresh(self):
        """Do nothing."""


def keep(*wanted):
    """Compile kernels, or load what is kept, each given as "capability,captured value,dtype of the argument"."""
    results = []
    for one in wanted:
        capability, *which = one.split(",")
        with pretend_gpu(tuple(map(int, capability.split(".")))):
            results.append(_keep(*which))
    return results


def _keep(factor, held):
    made = kernel("void(float32[::1])", name=f"scale_{factor}_kernel")(make(int(factor)))
    argument_types = (types.Array(getattr(types, held), 1, "C"),)
    kept = made._cache.load_overload(argument_types, NoContext())
    compiled = kept or compile_and_keep(made, argument_types)
    library = compiled._codelibrary
    return {
        "loaded": kept is not None,
        "file": made._cache.file_for(argument_types).name,
        "code": library.get_cubin().code.hex(),
        "ptx": library.get_asm_str(),
        "entry": compiled.entry_name,
        "signature": str(compiled.signature),
    }


def ahead(n_workers):
    """Return what launches miss, what workers say to that and to an unknown kernel, and what is missing yet."""
    floats, halves, unregistered = np.zeros(3, np.float32), np.zeros(3, np.uint16), cuda.jit(make(2))
    launches = [
        Launch(zero_kernel, 1, 32, (floats, 3)),
        Launch(zero_kernel, 1, 32, (halves, 3)),
        Launch(zero_kernel, 1, 32, (floats, 4)),
        Launch(cast_kernel, 1, 32, (halves, floats, 3)),
        Launch(zero_kernel, 1, 32, (np.zeros(3), 3)),  # of no variant
        Launch(unregistered, 1, 32, (floats,)),
    ]
    with pretend_gpu((8, 0)):
        jobs = missing(launches)
        wanted = [*jobs, Job("kernels.memory", "memory.no_kernel", "only")]
        done = dict(compile_in_processes(wanted, int(n_workers), "8.0"))
        still = missing(launches)
    return {
        "missing": [f"{job.name} {job.variant}" for job in jobs],
        "done": {f"{job.name} {job.variant}": problem for job, problem in done.items()},
        "still": [f"{job.name} {job.variant}" for job in still],
    }


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps({"fingerprints": fingerprints, "keep": keep, "ahead": ahead}[command](*arguments)))
