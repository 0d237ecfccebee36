"""Results of measurements, under llama-bench's field names."""

from __future__ import annotations

import math
from typing import Any

from pyllm.bench.options import BenchCase
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of a model, and of the machine that ran it, for reports."""

    filename: str
    type: str
    """Architecture, size and quantization in words: `llama 135M Q4_1`."""
    size: int
    """Bytes of all tensors."""
    n_params: int
    backend: str
    """Backends that computed: `cuda`, `cuda,cpu`."""
    cpu_info: str
    version: str
    """pyllm's version."""
    gpu_info: str = ""
    devices: tuple[str, ...] = ()
    """Names of the devices that computed."""
    n_gpu_layers: int = 0
    """Layers that ran on GPUs; the output counts as one."""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One case, measured `len(samples_ns)` times. Rates are tokens per second over all sequences."""

    case: BenchCase
    facts: ModelFacts
    n_threads: int
    test_time: str
    """Start of the case, UTC, ISO 8601."""
    samples_ns: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that one repetition computes."""
        return (self.case.n_prompt + self.case.n_gen) * self.case.n_parallel

    @property
    def samples_ts(self) -> tuple[float, ...]:
        return tuple(1e9 * self.n_tokens / ns for ns in self.samples_ns)

    @property
    def avg_ns(self) -> float:
        return sum(self.samples_ns) / len(self.samples_ns)

    @property
    def stddev_ns(self) -> float:
        return _stddev(self.samples_ns)

    @property
    def avg_ts(self) -> float:
        return sum(self.samples_ts) / len(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        return _stddev(self.samples_ts)

    def as_dict(self) -> dict[str, Any]:
        """llama-bench's JSON fields, as far as they apply, and `n_parallel`."""
        case, facts, placement = self.case, self.facts, self.case.placement
        return {
            "build_commit": f"pyllm-{facts.version}",
            "build_number": 0,
            "cpu_info": facts.cpu_info,
            "gpu_info": facts.gpu_info,
            "backends": facts.backend.upper(),
            "model_filename": facts.filename,
            "model_type": facts.type,
            "model_size": facts.size,
            "model_n_params": facts.n_params,
            "n_batch": case.n_batch,
            "n_ubatch": case.n_batch,
            "n_threads": self.n_threads,
            "type_k": case.kv_dtype,
            "type_v": case.kv_dtype,
            "n_gpu_layers": facts.n_gpu_layers,
            "n_cpu_moe": placement.n_cpu_moe,
            "main_gpu": placement.main_gpu,
            "no_kv_offload": not placement.kv_offload,
            "devices": "/".join(facts.devices),
            "tensor_split": "/".join(f"{share:.2f}" for share in placement.tensor_split) or "0.00",
            "tensor_buft_overrides": ";".join(f"{p}={d}" for p, d in placement.override_tensors) or "none",
            "n_prompt": case.n_prompt,
            "n_gen": case.n_gen,
            "n_depth": case.n_depth,
            "n_parallel": case.n_parallel,
            "test_time": self.test_time,
            "avg_ns": round(self.avg_ns),
            "stddev_ns": round(self.stddev_ns),
            "avg_ts": round(self.avg_ts, 6),
            "stddev_ts": round(self.stddev_ts, 6),
            "samples_ns": list(self.samples_ns),
            "samples_ts": [round(v, 4) for v in self.samples_ts],
        }


def _stddev(values: tuple[int, ...] | tuple[float, ...]) -> float:
    """Standard deviation of a sample (n - 1), 0 for a single value; as by llama-bench."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
