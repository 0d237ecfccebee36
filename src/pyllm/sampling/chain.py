"""A request's sampler: validated settings, a chain of steps, and its random numbers; `choose` runs many at once."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.config import Progress, SamplingParams
from pyllm.errors import BackendError, PyllmError, RequestError
from pyllm.sampling import steps
from pyllm.sampling.compiled import slots
from pyllm.sampling.general import check
from pyllm.sampling.top_logits import Floats, TopLogits
from pyllm.sampling.vocabulary import Endings, Vocabulary

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

Ids = NDArray[np.int32]
Mask = NDArray[np.int32]
"""[ceil(n_vocab / 32)]: bit i % 32 of word i // 32 is set where token i is allowed."""

_NONE = np.empty(0, np.int32)
_SINGLE, _TAKES_ANY = 256, 512
"""Bits of a step's number: it changes single logits; it takes those of a row as they come, infinite ones and such that
are no numbers."""


class Sampler:
    """Samples one request's tokens. The same seed and logits give the same tokens, whatever the rest of the batch.

    Random numbers are those of `numpy.random.Generator(numpy.random.PCG64(seed)).random()`, one for each token
    (none at temperature 0). `choose` leaves a sampler as it is; `accept` tells it what became of it.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        vocabulary: Vocabulary | None = None,
        stop_ids: Collection[int] = (),
    ) -> None:
        """`vocabulary` is for settings that are texts, `stop_ids` for `min_tokens`. Raises RequestError."""
        check(params, n_vocab)
        prepare()  # here, so that no step of others waits for it
        self.params = p = params
        self.n_vocab = n_vocab
        self.greedy = p.temperature == 0
        self.n_accepted = 0
        self.steps = _chain(p)
        self._random: np.random.Generator | None = None
        self._number: float | None = None
        self._stop_ids = np.array(sorted(stop_ids), np.int32) if p.min_tokens else _NONE
        self._endings: list[Endings] = []
        self._tail = b""
        self._vocabulary = vocabulary
        self._row = np.zeros(slots.ROW_SLOTS, np.int64)
        self.address = _address(self._row)
        self._ints = (ctypes.c_int64 * slots.ROW_SLOTS).from_address(self.address)
        self._floats = (ctypes.c_double * slots.ROW_SLOTS).from_address(self.address)
        self._kept: list[Any] = []
        self._fill(p, vocabulary)

    def n_needed(self, seen: Ids, n_ahead: int = 0) -> int | None:
        """Number of largest logits that determine the token after `seen` as all logits would; None: all are needed. The
        last `n_ahead` of `seen` are not accepted yet.

        One for greedy sampling, k for `top_k`, and one more for each token whose logit may be lowered. None where a
        step before `top_k` needs all logits, or a logit may be raised.
        """
        p = self.params
        if p.logits_processors or any(bias > 0 for bias in p.logit_bias.values()) or (n_ahead and self._endings):
            return None
        k = 1 if self.greedy else None
        lowered: Ids = _NONE
        for step in self.steps:
            if step.kind == "logits":
                if not step.lowers_only(p):
                    return None
                back = step.look_back(p)
                lowered = np.concatenate((lowered, seen[max(0, len(seen) - back) :] if back >= 0 else seen))
            elif not step.is_local(p):
                return None
            elif (needed := step.n_needed(p)) is not None:
                k = needed
                break
        if k is None:
            return None
        if len(lowered):
            k += len(np.unique(lowered))
        return min(k + self._n_biased + len(self._banned_now()), self.n_vocab)

    def __call__(self, logits: Floats | TopLogits, seen: Ids, mask: Mask | None = None) -> int:
        """The next token after `seen` (prompt and answer so far). `logits` [n_vocab] are not changed.

        Given the largest logits alone, at least `n_needed`, it chooses the same token, with the same random numbers.
        Raises BackendError where logits are all NaN or -inf, RequestError where no token is left to choose.
        """
        token = choose([logits], [self], [seen], [mask])[0]
        if isinstance(token, PyllmError):
            raise token
        self.accept(token)
        return token

    def accept(self, token: int, chosen: bool = True) -> None:
        """A token goes into the answer: the one that `choose` gave, or, where not `chosen`, another one."""
        self.n_accepted += 1
        if self._endings and self._vocabulary is not None:
            longest = max(ending.n_bytes for ending in self._endings)
            self._tail = (self._tail + self._vocabulary.token_bytes(token))[-longest:]
        if chosen:
            self._number = None
            at = slots.R_MEMORY // 8
            if self._kept_memory:
                self._ints[at], self._ints[at + 2] = self._ints[at + 1], self._ints[at + 3]

    def _fill(self, p: SamplingParams, vocabulary: Vocabulary | None) -> None:
        """The slots that stay the same for all tokens."""
        bias = {token: min(max(b, -1e30), 1e30) if b > -np.inf else b for token, b in p.logit_bias.items()}
        bias |= dict.fromkeys(p.banned_tokens, -np.inf)
        if p.banned_strings:
            known = _needed(vocabulary, "banned_strings")
            self._endings = [known.endings(text) for text in p.banned_strings]
            for ending in self._endings:
                bias |= dict.fromkeys(ending.holding.tolist(), -np.inf)
        self._n_biased = len(bias)
        if bias:
            # Larger ones have the same effect, and their sum with a logit stays finite.
            values = np.array(list(bias.values()), np.float32)
            self._set(slots.R_BIAS_IDS, np.fromiter(bias.keys(), np.int32, len(bias)))
            self._set(slots.R_BIAS, values)
            self._ints[slots.R_N_BIAS // 8] = len(bias)
        packed = np.zeros((len(self.steps), slots.STEP_SLOTS), np.int64)
        numbers = {step: i for i, step in enumerate(steps.all_steps())}
        for row, step in zip(packed, self.steps, strict=True):
            takes_any = (step.n_needed(p) or np.inf) <= slots.MANY
            bits = _SINGLE if step.kind == "logits" else _TAKES_ANY if takes_any else 0
            row[0] = numbers[step] | bits
            values64 = np.array(step.pack(p), np.float64)
            row[1 : 1 + len(values64)] = values64.view(np.int64)
        if len(packed):
            self._set(slots.R_STEPS, packed)
        self._ints[slots.R_N_STEPS // 8] = len(packed)
        self._ints[slots.R_GREEDY // 8] = int(self.greedy)
        self._ints[slots.R_N_VOCAB // 8] = self.n_vocab
        last = [step for step in self.steps if step.kind == "last"]
        self._kept_memory = bool(last)
        for step in last:
            at = slots.R_MEMORY // 8
            self._floats[at], self._floats[at + 2] = step.memory(p)
        self.looks_back = any(step.look_back(p) for step in self.steps)
        self.n_repeats = steps.by_name()["dry"] in self.steps
        if self.n_repeats and p.dry_sequence_breakers:
            flags, long = _needed(vocabulary, "dry_sequence_breakers").breakers(tuple(p.dry_sequence_breakers))
            self._set(slots.R_BREAKERS, flags)
            if len(long):
                self._set(slots.R_LONG_BREAKERS, long)
            self._ints[slots.R_N_LONG_BREAKERS // 8] = len(long)

    def _set(self, slot: int, array: NDArray[Any]) -> None:
        """The address of an array, which stays as long as the sampler, into a slot."""
        self._kept.append(array)
        self._ints[slot // 8] = _address(array)

    def _banned_now(self) -> Ids:
        """Tokens that cannot come next, besides those that never can."""
        found = [self._stop_ids] if self.n_accepted < self.params.min_tokens and len(self._stop_ids) else []
        for ending in self._endings:
            found += ending.after(self._tail)
        return np.unique(np.concatenate(found)) if found else _NONE

    def point(self, x: int, n: int, ids: int, writable: bool, seen: Ids, mask: int) -> None:
        """What the next token is chosen from: addresses of logits, and of their ids or 0."""
        ints = self._ints
        ints[slots.R_X // 8], ints[slots.R_N // 8], ints[slots.R_IDS // 8] = x, n, ids
        ints[slots.R_WRITABLE // 8] = writable
        ints[slots.R_MASK // 8] = mask
        if self.looks_back:
            ints[slots.R_SEEN // 8], ints[slots.R_N_SEEN // 8] = _address(seen), len(seen)
        if self._endings or len(self._stop_ids):
            self._now = self._banned_now()
            ints[slots.R_BANNED // 8], ints[slots.R_N_BANNED // 8] = _address(self._now), len(self._now)
        if not self.greedy:
            if self._number is None:
                if self._random is None:
                    # np.random is loaded at first use; greedy requests never use it.
                    self._random = np.random.Generator(np.random.PCG64(self.params.seed))
                self._number = self._random.random()
            self._floats[slots.R_U // 8] = self._number

    @property
    def token(self) -> int:
        """What the chain has chosen; -1 where there was nothing."""
        return self._ints[slots.R_TOKEN // 8]

    def processed(self, logits: Floats, seen: Ids) -> Floats:
        """A copy of logits as the request's own functions change it. Raises RequestError."""
        logits = logits.copy()
        for function in self.params.logits_processors:
            try:
                returned = function(seen, logits)
                if returned is not None:
                    logits = np.ascontiguousarray(returned, np.float32)
            except Exception as error:
                raise RequestError(f"a logits processor failed: {error!r}") from error
            if logits.shape != (self.n_vocab,):
                raise RequestError(f"a logits processor must return {self.n_vocab} logits, not {logits.shape}")
        return logits


def choose(
    rows: NDArray[np.float32] | Sequence[Floats | TopLogits],
    samplers: Sequence[Sampler],
    seen: Sequence[Ids],
    masks: Sequence[Mask | None] | None = None,
) -> list[int | PyllmError]:
    """The next token of each row [n_vocab], or why there is none; the whole chain of all rows is one compiled call.

    Row i is for samplers[i], after the tokens seen[i]; masks[i] says which tokens are allowed at all. Samplers stay as
    they are, so that the same call gives the same; `Sampler.accept` says which token it became.
    """
    work = _workspace()
    found: list[int | PyllmError] = [-1] * len(samplers)
    kept: list[Any] = []
    waiting: list[int] = []
    for i, sampler in enumerate(samplers):
        try:
            mask = None if masks is None else masks[i]
            kept.append(_point(sampler, rows[i], seen[i], mask))
            waiting.append(i)
        except RequestError as error:
            found[i] = error
    if not waiting:
        return found
    work.run([samplers[i] for i in waiting], max(len(seen[i]) if samplers[i].n_repeats else 0 for i in waiting))
    for i in waiting:
        token = samplers[i].token
        found[i] = token if token >= 0 else _reason(rows[i], None if masks is None else masks[i])
    return found


def prepare(progress: Progress | None = None) -> None:
    """Compile the chain for this processor, if no earlier run has, and load it."""
    if not _loaded:
        from pyllm.jit.compiler import LIBRARY
        from pyllm.jit.threads import KERNEL_TYPE

        kernel = chain_kernel()
        _loaded.append(KERNEL_TYPE(LIBRARY.load([kernel], progress)[kernel]))


_loaded: list[Callable[[int, int, int], None]] = []
"""The chain, once it is there."""


@cache
def chain_kernel() -> Kernel:
    """The kernel of all steps that there are; its name changes with any file that one of them is made of."""
    from pyllm.jit.compiler import kernel, source_files

    files = {file for step in steps.all_steps() for file in source_files(f"sampling.steps.{step.name()}")}
    digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files)))
    return kernel("sampling.compiled.chain", "choose", steps=digest.hexdigest()[:16])


class _Workspace(threading.local):
    """A thread's memory for the compiled chain."""

    def __init__(self) -> None:
        self._n_vocab = self._n_seen = 0

    def run(self, samplers: Sequence[Sampler], n_seen: int) -> None:
        n_vocab = max(sampler.n_vocab for sampler in samplers)
        if n_vocab > self._n_vocab or n_seen > self._n_seen:
            self._allocate(max(n_vocab, self._n_vocab), max(n_seen, self._n_seen))
        rows = np.array([sampler.address for sampler in samplers], np.int64)
        self._arguments[1], self._arguments[2] = _address(rows), len(samplers)
        _loaded[0](self._at, 0, 1)

    def _allocate(self, n_vocab: int, n_seen: int) -> None:
        n_seen = max(2 * n_seen, 64) if n_seen else 64
        floats, ints = (n_vocab + 64, np.float32), (n_vocab + 64, np.int32)
        state = np.zeros(slots.STATE_SLOTS, np.int64)
        self._arrays: dict[int, NDArray[Any]] = {
            slots.COPY: np.empty(*floats),
            slots.COPY_2: np.empty(*floats),
            slots.LIST_X: np.empty(*floats),
            slots.LIST_IDS: np.empty(*ints),
            slots.KEYS: np.empty(n_vocab + 64, np.int64),
            slots.SPARE_KEYS: np.empty(n_vocab + 64, np.int64),
            slots.PART: np.empty(*floats),
            slots.COUNTS: np.zeros(*ints),
            slots.TOUCHED: np.empty(*ints),
            slots.SAVED: np.empty(2 * slots.MOST_SAVED, np.int32),
            slots.REPEATS: np.empty(n_seen, np.int32),
            slots.SUMS: np.empty(n_vocab // slots.SUM_BLOCK + 512, np.float64),
        }
        for slot, array in self._arrays.items():
            state[slot // 8] = _address(array)
        self._state = state
        self._arguments = np.array([_address(state), 0, 0], np.int64)
        self._at = _address(self._arguments)
        self._n_vocab, self._n_seen = n_vocab, n_seen


_work = _Workspace()


def _workspace() -> _Workspace:
    return _work


def _chain(p: SamplingParams) -> list[type[steps.Step]]:
    """The steps that do something, in order."""
    named = steps.ordered(p.samplers)
    named += [step for step in steps.all_steps() if step.kind == "last" and step not in named]
    on = [step for step in named if step.is_on(p)]
    if p.temperature == 0:
        return [step for step in on if step.kind == "logits"]
    if p.mirostat:
        return [step for step in on if step.kind != "narrowing"]
    return on


def _point(sampler: Sampler, row: Floats | TopLogits, seen: Ids, mask: Mask | None) -> Any:
    """Let a sampler look at a row; gives what must stay in memory meanwhile."""
    if mask is not None:
        mask = np.ascontiguousarray(mask).view(np.int32)
        if len(mask) * 32 < sampler.n_vocab:
            raise RequestError(f"a mask has {len(mask)} words of 32 bits, for {sampler.n_vocab} tokens")
    allowed = 0 if mask is None else _address(mask)
    if isinstance(row, TopLogits):
        ids, logits = np.ascontiguousarray(row.ids, np.int32), np.ascontiguousarray(row.logits, np.float32)
        sampler.point(_address(logits), len(ids), _address(ids), False, seen, allowed)
        return mask, ids, logits
    writable = row.flags.writeable
    if sampler.params.logits_processors:
        row, writable = sampler.processed(row, seen), True
    elif row.dtype != np.float32 or row.strides[0] != 4:
        row, writable = np.ascontiguousarray(row, np.float32), True
    sampler.point(_address(row), len(row), 0, writable, seen, allowed)
    return mask, row


def _reason(row: Floats | TopLogits, mask: Mask | None) -> PyllmError:
    """Why nothing was left to choose from."""
    logits = row.logits if isinstance(row, TopLogits) else row
    if not (logits > -np.inf).any():
        return BackendError("the model's logits are all NaN or -inf; the file may be damaged")
    if mask is not None:
        return RequestError("no token that is allowed here is possible")
    return RequestError("logit_bias forbids every token; leave at least one")


def _needed(vocabulary: Vocabulary | None, name: str) -> Vocabulary:
    if vocabulary is None:
        raise RequestError(f"{name} are texts, which need a tokenizer; this model has none that is usable")
    return vocabulary


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
