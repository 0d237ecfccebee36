"""What to measure: settings crossed into cases the way llama-bench crosses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import cast, get_args

from pyllm.config import KVDtype
from pyllm.errors import RequestError

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One measurement: after `n_depth` tokens that are not timed, `n_prompt` tokens at once, then `n_gen` one by one.

    With `n_parallel` sequences, each does all of that, side by side in the same steps.
    """

    model: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_parallel: int
    n_threads: int | None
    n_batch: int
    kv_dtype: KVDtype

    @property
    def name(self) -> str:
        """As llama-bench writes it: `pp512`, `tg128 @ d1024`, `pp512+tg128`; `x16` tells of parallel sequences."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        parallel = f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return "+".join(parts) + parallel + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_positions(self) -> int:
        """Positions that each sequence takes in the KV cache."""
        return self.n_depth + self.n_prompt + self.n_gen


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Each tuple lists the values to try; all combinations are run. Prompts and generation are separate cases, `pg`
    pairs (n_prompt, n_gen) combined ones. A zero in `n_prompt` or `n_gen` means: none of that kind."""

    models: tuple[str, ...]
    """Paths or names, as `pyllm.load` takes them."""
    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    pg: tuple[tuple[int, int], ...] = ()
    n_depth: tuple[int, ...] = (0,)
    """Tokens that the context holds before the measurement."""
    n_parallel: tuple[int, ...] = (1,)
    """Sequences that run at once (llama-batched-bench's `npl`); rates count the tokens of all of them."""
    n_threads: tuple[int, ...] = ()
    """Empty: as many as `pyllm.load` would use."""
    n_batch: tuple[int, ...] = (512,)
    """Most tokens of one step."""
    kv_dtype: tuple[KVDtype, ...] = ("f16",)
    backend: str = "cpu"
    adapters: tuple[tuple[str, float], ...] = ()
    """LoRA adapters that every model runs with: files and scales."""
    repetitions: int = 5
    warmup: bool = True
    delay: float = 0.0
    """Seconds of rest before each case, for machines that get hot."""

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("bench needs at least one model")
        if self.repetitions < 1:
            raise RequestError(f"bench needs at least one repetition, not {self.repetitions}")
        for name, least in (("n_prompt", 0), ("n_gen", 0), ("n_depth", 0), ("n_parallel", 1), ("n_batch", 1)):
            if any(v < least for v in getattr(self, name)):
                raise RequestError(f"bench: {name} must be {least} or more, not {min(getattr(self, name))}")
        if any(v < 1 for v in self.n_threads):
            raise RequestError("bench: n_threads must be 1 or more")
        if unknown := set(self.kv_dtype) - set(get_args(KVDtype)):
            raise RequestError(f"bench: kv_dtype must be f16 or f32, not {', '.join(sorted(map(str, unknown)))}")

    def cases(self) -> Iterator[BenchCase]:
        """All cases; those that can share a loaded model (same model, threads, batch, KV) come one after another."""
        tests = [(p, 0) for p in self.n_prompt if p] + [(0, g) for g in self.n_gen if g]
        tests += [(p, g) for p, g in self.pg if p or g]
        threads: tuple[int | None, ...] = self.n_threads or (None,)
        for model, n_batch, kv_dtype, n_threads, n_parallel, n_depth in product(
            self.models, self.n_batch, self.kv_dtype, threads, self.n_parallel, self.n_depth
        ):
            for n_prompt, n_gen in tests:
                yield BenchCase(model, n_prompt, n_gen, n_depth, n_parallel, n_threads, n_batch, kv_dtype)


def parse_ints(text: str) -> tuple[int, ...]:
    """Numbers out of a list such as `512,1024`, `1-4`, `1-9+2` (1 3 5 7 9) or `1-8*2` (1 2 4 8), in the order given."""
    values: list[int] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise RequestError(f"'{item.strip()}' is neither a number nor a range such as 1-4, 1-9+2 or 1-8*2")
        first, last, sign, step = match.groups()
        values += _range(item.strip(), int(first), int(last or first), sign or "+", int(step or 1))
    return tuple(values)


def parse_pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs out of `512,128`; several are separated by `;` or `/`: `512,128;1024,64`."""
    pairs = []
    for item in re.split(r"[;/]", text):
        match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", item)
        if match is None:
            raise RequestError(f"'{item.strip()}' is not a pair of prompt and generation lengths such as 512,128")
        pairs.append((int(match[1]), int(match[2])))
    return tuple(pairs)


def _range(text: str, first: int, last: int, sign: str, step: int) -> Iterator[int]:
    if first > last or step < 1 or (sign == "*" and (step < 2 or first < 1) and first < last):
        raise RequestError(f"'{text}' is not a range that ends: use first-last, first-last+step or first-last*factor")
    while first <= last:
        yield first
        first = first + step if sign == "+" else max(first * step, first + 1)


def as_kv_dtype(text: str) -> KVDtype:
    """A KV cache's type from a command line's word."""
    if text not in get_args(KVDtype):
        raise RequestError(f"'{text}' is no type of a KV cache; use one of {', '.join(get_args(KVDtype))}")
    return cast(KVDtype, text)
