"""Cases of a benchmark: settings crossed as by llama-bench."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from pyllm.config import AdapterChoice, GPULayers, KVDtype, LoadSettings, PlacementOptions
from pyllm.errors import RequestError
from pyllm.records import dataclass

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


_PLACED = PlacementOptions()


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One measurement: after `n_depth` untimed tokens, `n_prompt` tokens at once, then `n_gen` one by one.

    With `n_parallel` sequences, each does this, side by side in the same steps.
    """

    model: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_parallel: int
    n_threads: int | None
    n_batch: int
    kv_dtype: KVDtype
    placement: PlacementOptions = _PLACED

    @property
    def name(self) -> str:
        """Name as by llama-bench: `pp512`, `tg128 @ d1024`, `pp512+tg128`; `x16` for parallel sequences."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        parallel = f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return "+".join(parts) + parallel + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_positions(self) -> int:
        """Positions of each sequence in the KV cache."""
        return self.n_depth + self.n_prompt + self.n_gen


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Each tuple lists values to try; all combinations are run. Prompts and generation are separate cases, `pg` pairs
    (n_prompt, n_gen) combined ones. A zero in `n_prompt` or `n_gen`: no case of that kind."""

    models: tuple[str, ...]
    """Paths or names, as `pyllm.load` takes them, or `preset:` and a preset (`preset:llama3-8b:Q4_K_M`)."""
    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    pg: tuple[tuple[int, int], ...] = ()
    n_depth: tuple[int, ...] = (0,)
    """Tokens in the context before the measurement."""
    n_parallel: tuple[int, ...] = (1,)
    """Parallel sequences (llama-batched-bench's `npl`); rates count the tokens of all."""
    n_threads: tuple[int, ...] = ()
    """Empty: the default of `pyllm.load`."""
    n_batch: tuple[int, ...] = (512,)
    """Most tokens of one step."""
    kv_dtype: tuple[KVDtype, ...] = ("f16",)
    n_gpu_layers: tuple[GPULayers, ...] = ("auto",)
    n_cpu_moe: tuple[int, ...] = (0,)
    devices: tuple[tuple[str, ...], ...] = ((),)
    """Sets of GPUs to try; an empty one: all."""
    placement: PlacementOptions = _PLACED
    """Other placement options, for all cases; `n_gpu_layers`, `n_cpu_moe` and `devices` are not used."""
    backend: str = "auto"
    adapters: tuple[AdapterChoice, ...] = ()
    """LoRA adapters of every model: files and scales."""
    repetitions: int = 5
    warmup: bool = True
    delay: float = 0.0
    """Seconds to wait before each case, so that the machine cools down."""

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("bench needs at least one model")
        if self.repetitions < 1:
            raise RequestError(f"bench needs at least one repetition, not {self.repetitions}")
        for name, least in (("n_prompt", 0), ("n_gen", 0), ("n_depth", 0), ("n_parallel", 1)):
            if any(v < least for v in getattr(self, name)):
                raise RequestError(f"bench: {name} must be {least} or more, not {min(getattr(self, name))}")
        for name in ("n_batch", "n_threads", "kv_dtype", "n_gpu_layers", "n_cpu_moe", "devices"):
            for value in getattr(self, name):
                LoadSettings.of("bench", {name: value})

    def cases(self) -> Iterator[BenchCase]:
        """All cases; those that can share a loaded model (all but lengths and sequences the same) are neighbours."""
        tests = [(p, 0) for p in self.n_prompt if p] + [(0, g) for g in self.n_gen if g]
        tests += [(p, g) for p, g in self.pg if p or g]
        threads: tuple[int | None, ...] = self.n_threads or (None,)
        for model, n_batch, kv_dtype, n_threads, placement, n_parallel, n_depth in product(
            self.models, self.n_batch, self.kv_dtype, threads, self._placements(), self.n_parallel, self.n_depth
        ):
            for n_prompt, n_gen in tests:
                yield BenchCase(model, n_prompt, n_gen, n_depth, n_parallel, n_threads, n_batch, kv_dtype, placement)

    def _placements(self) -> list[PlacementOptions]:
        return [
            replace(self.placement, devices=devices, n_cpu_moe=n_cpu_moe, n_gpu_layers=n_gpu_layers)
            for devices, n_cpu_moe, n_gpu_layers in product(self.devices, self.n_cpu_moe, self.n_gpu_layers)
        ]


def parse_ints(text: str) -> tuple[int, ...]:
    """Numbers of a list such as `512,1024`, `1-4`, `1-9+2` (1 3 5 7 9) or `1-8*2` (1 2 4 8), in order."""
    values: list[int] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise RequestError(f"'{item.strip()}' is neither a number nor a range such as 1-4, 1-9+2 or 1-8*2")
        first, last, sign, step = match.groups()
        values += _range(item.strip(), int(first), int(last or first), sign or "+", int(step or 1))
    return tuple(values)


def parse_pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs of `512,128`; several are separated by `;` or `/`: `512,128;1024,64`."""
    pairs = []
    for item in re.split(r"[;/]", text):
        match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", item)
        if match is None:
            raise RequestError(f"'{item.strip()}' is not a pair of prompt and generation lengths such as 512,128")
        pairs.append((int(match[1]), int(match[2])))
    return tuple(pairs)


def parse_gpu_layers(text: str) -> tuple[GPULayers, ...]:
    """Numbers of GPU layers of `0,16,99`, `auto`, `all`, `8-32+8`; -1 is auto, as in llama.cpp."""
    words: dict[str, GPULayers] = {"auto": "auto", "all": "all", "-1": "auto"}
    values: list[GPULayers] = []
    for item in text.split(","):
        word = item.strip().lower()
        try:
            values += [words[word]] if word in words else parse_ints(item)
        except RequestError as error:
            raise RequestError(f"{error}; auto and all are numbers of layers, too") from None
    return tuple(values)


def parse_devices(text: str) -> tuple[tuple[str, ...], ...]:
    """Sets of devices of `cuda0,cuda0/cuda1` (two sets); `auto` is the set of all."""
    sets = [tuple(name.strip() for name in item.split("/")) for item in text.split(",")]
    if not all(name for names in sets for name in names):
        raise RequestError(f"'{text}' is not a list of devices such as cuda0,cuda0/cuda1")
    return tuple(() if names == ("auto",) else names for names in sets)


def _range(text: str, first: int, last: int, sign: str, step: int) -> Iterator[int]:
    if first > last or step < 1 or (sign == "*" and (step < 2 or first < 1) and first < last):
        raise RequestError(f"'{text}' is not a range that ends: use first-last, first-last+step or first-last*factor")
    while first <= last:
        yield first
        first = first + step if sign == "+" else max(first * step, first + 1)
