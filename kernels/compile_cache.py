"""Compiled kernels kept on disk, so that a second process loads in milliseconds what the first compiled in seconds.

Numba can keep kernels itself (`cuda.jit(cache=True)`), but it knows a kernel only by its own lines: it would not notice
another device function or constant, and would never find again what uses an intrinsic. Here the name of a file is a
hash of everything that the code comes from: `fingerprint`, types of the arguments, GPU, versions of the tools. So there
is nothing to invalidate: whatever changes leads to another file.

A file begins with the hash of its content, and is written under another name and renamed. So several processes may fill
the folder at once, and a damaged file is compiled anew. It holds GPU code and text, no pickle: reading it runs nothing
on the host. The folder may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cuda.bindings import nvjitlink
from cuda.core import ObjectCode
from numba.cuda import dispatcher, types, typing
from numba.cuda.codegen import CUDACodeLibrary
from numba.cuda.core.caching import _Cache
from numba.cuda.core.sigutils import normalize_signature
from numba.cuda.cudadrv import driver, nvvm
from numba.cuda.dispatcher import CUDADispatcher, _Kernel
from numba.cuda.utils import numba_target_override

from kernels.fingerprint import NoFingerprintError, fingerprint

_TOOLS = ("numba", "numba-cuda", "llvmlite", "cuda-bindings", "cuda-core", "numpy")
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Return where compiled kernels are kept: in GPT2EDU_DATA, or the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2edu"
    return Path(os.environ.get("GPT2EDU_DATA") or cache).expanduser() / "kernels"


@functools.cache
def toolchain() -> tuple:
    """Return the versions and settings, beside a kernel's sources, that its code depends on."""
    versions = [sys.version, *(f"{tool} {importlib.metadata.version(tool)}" for tool in _TOOLS)]
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")]
    linker = f"nvjitlink {nvjitlink.version()}" if driver._have_nvjitlink() else f"driver {driver.get_version()}"
    return (*versions, f"nvvm {nvvm.NVVM().get_version()}", linker, *settings)


class CompiledKernels(_Cache):
    """The cache of one kernel: Numba asks it before it compiles, and gives it what it compiled.

    Args:
        kernel: What `cuda.jit` made.
    """

    cache_path = property(lambda self: str(cache_folder()))

    def __init__(self, kernel: CUDADispatcher) -> None:
        self._kernel = kernel

    def file_for(self, argument_types: Sequence) -> Path:
        """Return the file of the kernel compiled for these types and the current GPU.

        Raises:
            NoFingerprintError: It depends on something that cannot be described.
        """
        types = [(type(t).__qualname__, repr(t), repr(t.key)) for t in argument_types]
        key = repr((fingerprint(self._kernel), types, _capability(), toolchain()))
        function = self._kernel.py_func
        name = f"{function.__module__}.{function.__name__}".removeprefix("kernels.")
        return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()}.bin"

    def has(self, argument_types: Sequence) -> bool:
        """Tell whether there is a file for these types."""
        try:
            return self.file_for(argument_types).exists()
        except NoFingerprintError:
            return False

    def load_overload(self, sig, target_context):
        """Return the compiled kernel, or None if it is not there, damaged, or of a kind that is not kept."""
        with numba_target_override():
            target_context.refresh()  # its context must be there before it is launched
        argument_types, _ = normalize_signature(sig)
        try:
            content = self.file_for(argument_types).read_bytes()
        except (NoFingerprintError, OSError):
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return _from_bytes(body, argument_types) if hashlib.sha256(body).digest() == digest else None

    def save_overload(self, sig, compiled) -> None:
        """Keep a compiled kernel; where nothing can be written, or its code cannot be told by a name, do without."""
        try:
            file, body = self.file_for(normalize_signature(sig)[0]), _to_bytes(compiled)
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, suffix=".part", delete=False) as part:
                part.write(hashlib.sha256(body).digest() + body)
            os.replace(part.name, file)
        except (NoFingerprintError, NotKeptError, OSError):
            return

    def enable(self) -> None:
        """Do nothing: the cache is always on, and what is old in it is never asked for."""

    disable = flush = enable


def _capability() -> tuple[int, ...]:
    return tuple(dispatcher.get_current_device().compute_capability)


class NotKeptError(Exception):
    """A kernel that is more than its own code."""


def _to_bytes(compiled: _Kernel) -> bytes:
    """Return a compiled kernel as a line of JSON and its GPU code.

    Raises:
        NotKeptError: It needs linked files, extensions or debug information, has another code for each grid, or is for
            another GPU.
    """
    library = compiled._codelibrary
    if compiled.launch_config_sensitive or compiled.extensions or compiled.debug or library._linking_files:
        raise NotKeptError
    ((capability, code),) = library._cubin_cache.items()
    if tuple(capability[:2]) != _capability():
        raise NotKeptError
    header = {
        "capability": capability,
        "name": library.name,
        "entry": compiled.entry_name,
        "ptx": library._ptx_cache[capability],
        "max_registers": library._max_registers,
        "nvvm_options": library._nvvm_options,
        "cooperative": compiled.cooperative,
        "needs_cudadevrt": library.needs_cudadevrt,
        "lto": library._lto,
        "lineinfo": compiled.lineinfo,
        "shared_memory_carveout": compiled.shared_memory_carveout,
    }
    return json.dumps(header).encode() + b"\n" + code.code


def _from_bytes(body: bytes, argument_types: Sequence) -> _Kernel:
    """Make a compiled kernel of what `_to_bytes` gave."""
    text, _, code = body.partition(b"\n")
    header = json.loads(text)
    capability = tuple(header["capability"])
    library = CUDACodeLibrary._rebuild(
        codegen=None,
        name=header["name"],
        entry_name=header["entry"],
        llvm_strs=[],
        ptx_cache={capability: header["ptx"]},
        cubin_cache={capability: ObjectCode.from_cubin(code)},
        linkerinfo_cache={},
        max_registers=header["max_registers"],
        nvvm_options=header["nvvm_options"],
        needs_cudadevrt=header["needs_cudadevrt"],
        nrt=False,
        use_cooperative=header["cooperative"],
        lto=header["lto"],
    )
    return _Kernel._rebuild(
        cooperative=header["cooperative"],
        name=header["entry"],
        signature=typing.signature(types.none, *argument_types),
        codelibrary=library,
        debug=False,
        lineinfo=header["lineinfo"],
        call_helper=None,  # reports errors of kernels with debug information
        extensions=[],
        shared_memory_carveout=header["shared_memory_carveout"],
    )
