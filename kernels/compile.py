"""Compile every kernel to PTX and assemble it with ptxas, without a GPU: `python -m kernels.compile`.

Prints one row a kernel, dtype and architecture: registers, shared memory, stack frame, spills, and whether the code
computes in float64. `--write FILE` stores the table, which a test compares with what the sources give. Results are kept
by the hash of the sources that a kernel is made of, so only what changed is compiled again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels import SIMULATED
from kernels.precompile import pretend_gpu
from kernels.registry import ARCHITECTURES, all_kernels

_COUNTS = {
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_bytes": r"(\d+) bytes spill stores",
}


def find_ptxas() -> str | None:
    """Return the path of ptxas: on PATH, in a CUDA toolkit, or in NVIDIA's wheel; None if there is none."""
    toolkits = sorted(Path("/usr/local").glob("cuda*/bin/ptxas"))
    wheel = importlib.util.find_spec("nvidia")
    in_wheel = [
        p for root in (wheel.submodule_search_locations if wheel else []) for p in Path(root).glob("*/bin/ptxas")
    ]
    return shutil.which("ptxas") or next((str(path) for path in [*toolkits, *in_wheel]), None)


def toolchain(ptxas: str) -> dict[str, str]:
    """Return the versions on which the table depends."""
    version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"V([\d.]+)", version).group(1)
    return {"numba-cuda": importlib.metadata.version("numba-cuda"), "ptxas": release}


def sources_of(module: str, seen: dict[str, str] | None = None) -> dict[str, str]:
    """Return the sources, by module, of a module of this package and of those that it imports from it."""
    seen = {} if seen is None else seen
    if module in seen or module.startswith("kernels.simulator"):
        return seen
    seen[module] = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(seen[module])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kernels."):
            sources_of(node.module, seen)
    return seen


def to_ptx(function: Callable, signature: str, architecture: str, **options: object) -> str:
    """Return the PTX of one kernel; no GPU is needed, but the real Numba CUDA is.

    Args:
        function: The Python function of the kernel.
        signature: In Numba's notation, without `real`.
        architecture: A key of `ARCHITECTURES`.
        **options: Options of `cuda.jit` that change the code.
    """
    import numba.cuda

    cc = ARCHITECTURES[architecture]
    with pretend_gpu(cc[:2]):
        ptx, _ = numba.cuda.compile(function, signature, cc=cc, device=False, abi="numba", output="ptx", **options)
    return ptx


def assemble(entry, signature: str, architecture: str, ptxas: str) -> dict[str, int | bool]:
    """Compile one kernel for one signature and architecture and return its row.

    Raises:
        RuntimeError: ptxas refuses the code.
    """
    options = {k: v for k, v in entry.options.items() if k in ("launch_bounds", "fastmath", "max_registers")}
    ptx = to_ptx(entry.function, signature, architecture, **options)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, f"-arch={architecture}", "-v", str(source), "-o", str(source.with_suffix(".cubin"))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{entry.name} {signature} for {architecture}: {result.stderr}")
    return read_report(result.stderr) | {"float64": ".f64" in ptx}


def read_report(report: str) -> dict[str, int | list[str]]:
    """Return what `ptxas -v` counted, and under `warnings` its warnings of lost speed if there are any.

    The worst of them is that it lets products with `wgmma` wait for one another.
    """
    found = {name: re.search(pattern, report) for name, pattern in _COUNTS.items()}
    row = {name: int(match.group(1)) if match else 0 for name, match in found.items()}
    warnings = sorted(set(re.findall(r"\(C\d+\)[^'\n]*", report)))
    return row | ({"warnings": warnings} if warnings else {})


def compile_all(ptxas: str, cache: Path) -> dict:
    """Return the table: the toolchain, and the rows by kernel, variant and architecture."""
    tools = toolchain(ptxas)
    cache.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict] = {}
    for name, entry in all_kernels().items():
        sources = sources_of(entry.function.__module__)
        for variant, signature in entry.signatures.items():
            for architecture in entry.architectures:
                key = json.dumps([tools, sorted(sources.items()), name, signature, architecture])
                stored = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
                if not stored.exists():
                    row = assemble(entry, signature, architecture, ptxas)
                    partial = stored.with_suffix(f".{os.getpid()}")
                    partial.write_text(json.dumps(row), encoding="utf-8")
                    partial.replace(stored)
                row = json.loads(stored.read_text(encoding="utf-8"))
                rows.setdefault(name, {}).setdefault(variant, {})[architecture] = row
    return {"toolchain": tools, "kernels": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print and perhaps store the table."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compile", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    default_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpt2edu" / "compiled"
    parser.add_argument("--write", type=Path, metavar="FILE", help="store the table as JSON")
    parser.add_argument(
        "--cache", type=Path, default=default_cache, help="folder of kept results (default %(default)s)"
    )
    options = parser.parse_args(argv)
    if SIMULATED:  # compiling needs the real Numba CUDA, which only a new process can choose
        command = [sys.executable, "-m", "kernels.compile", *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}).returncode
    ptxas = find_ptxas()
    if ptxas is None:
        print("error: ptxas was not found; install a CUDA toolkit or the wheel nvidia-cuda-nvcc", file=sys.stderr)
        return 1
    table = compile_all(ptxas, options.cache)
    print(f"{'kernel':60} {'variant':9} {'arch':7} registers shared stack spills float64")
    for name, variants in table["kernels"].items():
        for variant, rows in variants.items():
            for architecture, row in rows.items():
                print(
                    f"{name:60} {variant:9} {architecture:7} {row['registers']:9} {row['shared_bytes']:6} "
                    f"{row['stack_bytes']:5} {row['spill_bytes']:6} {'yes' if row['float64'] else 'no':>7}"
                )
    if options.write:
        options.write.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
