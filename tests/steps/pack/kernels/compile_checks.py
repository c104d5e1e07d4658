"""Compile every kernel to machine code for Ampere and Hopper, which needs no GPU, and refuse what would be slow there.

python compile_checks.py BITS...: one line per kernel; exit 1 when a decode kernel spills registers to memory, a prefill
kernel spills more than SPILLED bytes, or shared memory is more than the smallest such GPU has.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from steps.pack.kernels import dense, matmul, matvec
from steps.pack.kernels.packed import Packed

SPILLED, SHARED = 64, 99 << 10
"""Bytes per thread; bytes per block (CUDA C++ Programming Guide, compute capability 8.6 and 8.9)."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
USED = re.compile(r"REG:(\d+) STACK:(\d+)")
POINTERS = {"codes_ptr": "*i32", "scale_ptr": "*bf16", "y_ptr": "*fp16", "out_ptr": "*fp16"}


def compiled(kernel: Any, constants: dict[str, Any], x: str, options: dict[str, Any], capability: int) -> Any:
    """The kernel as a launch with 16-byte aligned tensors and sizes would compile it."""
    types = POINTERS | {"x_ptr": x, "zero_ptr": "*i32" if constants["SIGNED"] else "*u8"}
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in constants and n != "stride"},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


def kernels(bits: int, signed: bool) -> dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]]:
    """By name: the kernel, its constants, the type of its input, and its options, as the launchers choose them."""
    same = {"BITS": bits, "GROUP": 128, "SIGNED": signed}
    vector = matvec.launch(Packed(bits, 4096, 128, torch.empty(0), torch.empty(0)), 4096)[1]
    batch = matmul.block(bits)
    many = {"ROWS": matmul.ROWS, "RUNS": batch.pop("RUNS"), "TOKENS": matmul.TOKENS}
    wide = {"ROWS": dense.ROWS, "COLUMNS": dense.COLUMNS}
    warps = {"num_warps": vector.pop("num_warps")}
    return {
        "matvec": (matvec._kernel, {**same, **vector, "HALF": True}, "*i64", warps),
        "matmul": (matmul._kernel, same | many, "*fp16", batch),
        "dense": (dense._kernel, same | wide, "", {}),
    }


def sound(name: str, binary: Any, label: str) -> bool:
    """Print what it uses; whether that is within bounds."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    registers, stack = (int(n) for n in USED.findall(said)[0])
    shared = binary.metadata.shared
    print(f"{label}: {registers} registers, {stack} bytes spilled, {shared} bytes shared")
    return stack <= (SPILLED if name == "matmul" else 0) and shared <= SHARED


if __name__ == "__main__":
    good = []
    for bits in map(int, sys.argv[1:]):
        for capability, signed in ((80, False), (90, True)):
            for name, found in kernels(bits, signed).items():
                label = f"{name} of {bits} bits for sm_{capability}"
                good.append(sound(name, compiled(*found, capability), label))
    sys.exit(0 if good and all(good) else 1)
