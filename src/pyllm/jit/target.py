"""The processor that kernels are compiled for: its LLVM name and features, the host's unless restricted.

`NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` restrict it (numba reads the same two), which is how narrower instruction
sets are tested on a wide machine. Imports llvmlite only.
"""

from __future__ import annotations

from functools import cache

from llvmlite import binding as llvm

from pyllm import env
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A processor as LLVM knows it."""

    triple: str
    cpu: str
    features: str
    """LLVM's feature string: "+avx2,-avx512f"."""

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "amd64"))

    @property
    def is_arm64(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    def has(self, *names: str) -> bool:
        """Whether all these features are there, by LLVM's names ("avx512vnni")."""
        return all(f in _enabled(self) for f in names)

    @property
    def isa(self) -> str:
        """The instruction set that kernels are chosen by; names a branch in `simd`."""
        if self.is_x86:
            if self.has("avx512f", "avx512bw", "avx512dq", "avx512vl"):
                return "avx512vnni" if self.has("avx512vnni") else "avx512"
            if self.has("avx2", "fma", "f16c"):
                return "avxvnni" if self.has("avxvnni") else "avx2"
            return "sse2"
        if self.is_arm64:
            return "dotprod" if self.has("dotprod") else "neon"
        return "generic"

    def machine(self) -> llvm.TargetMachine:
        _initialize()
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, jit=True, codemodel="jitdefault", reloc="default"
        )


@cache
def host() -> Target:
    """The target to compile for on this machine."""
    cpu, features = env.cpu_target()
    triple = llvm.get_process_triple()
    if cpu == "host":
        cpu = None
    if features is None:
        # A named processor implies its features; only the host's are queried.
        features = (
            "" if cpu else ",".join(("+" if on else "-") + f for f, on in sorted(llvm.get_host_cpu_features().items()))
        )
    return Target(triple, cpu or llvm.get_host_cpu_name(), features)


# LLVM does not tell which features a processor name implies; these are the ones that kernels are chosen by.
_X86_V3 = frozenset({"avx", "avx2", "fma", "f16c", "bmi", "bmi2"})
_X86_V4 = _X86_V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_IMPLIED = {
    "haswell": _X86_V3,
    "broadwell": _X86_V3,
    "skylake": _X86_V3,
    "x86-64-v3": _X86_V3,
    "znver1": _X86_V3,
    "znver2": _X86_V3,
    "znver3": _X86_V3,
    "alderlake": _X86_V3 | {"avxvnni"},
    "skylake-avx512": _X86_V4,
    "x86-64-v4": _X86_V4,
    "cascadelake": _X86_V4 | {"avx512vnni"},
    "icelake-server": _X86_V4 | {"avx512vnni", "avx512vbmi"},
    "rocketlake": _X86_V4 | {"avx512vnni", "avx512vbmi"},
    "znver4": _X86_V4 | {"avx512vnni", "avx512vbmi", "avx512bf16"},
    "znver5": _X86_V4 | {"avx512vnni", "avx512vbmi", "avx512bf16", "avxvnni"},
    "apple-m1": frozenset({"neon", "dotprod", "fullfp16"}),
    "neoverse-n1": frozenset({"neon", "dotprod", "fullfp16"}),
}


@cache
def _enabled(target: Target) -> frozenset[str]:
    names = set(_IMPLIED.get(target.cpu, ()))
    for item in filter(None, target.features.split(",")):
        (names.add if item[0] == "+" else names.discard)(item[1:])
    return frozenset(names)


@cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
