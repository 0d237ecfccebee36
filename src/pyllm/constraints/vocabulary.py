"""A tokenizer as llguidance sees it: each token's bytes, control tokens, and the tokens that end an answer."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from pyllm.constraints.stack import on_large_stack
from pyllm.errors import RequestError
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.vocab import CONTROL, UNKNOWN

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_KEPT = 32  # compiled grammars kept per vocabulary


class Vocabulary:
    """A vocabulary for matchers; see `vocabulary`. Safe to use from several threads.

    Control tokens match no text, only their own names or ids in a grammar. User-defined tokens are text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes 0.3 s for 150,000 tokens, half of it for llguidance's slices, which make masks of texts ten times
        faster; it doesn't give way to other Python threads, nor would it in a thread of its own.

        Raises RequestError where no token ends an answer.
        """
        from llguidance import LLTokenizer

        if not tokenizer.stop_ids:
            raise RequestError("structured output needs a token that ends an answer, and this vocabulary has none")
        self.n_tokens = tokenizer.n_vocab
        self.n_words = -(-self.n_tokens // 32)
        """Length of a mask in words of 32 bits."""
        self.end_ids = tokenizer.stop_ids
        self.strips_first = tokenizer.strips_first
        self.token_bytes = tokenizer.all_bytes()
        self._tokenizer = weakref.ref(tokenizer)
        self.for_matchers: LLTokenizer = LLTokenizer(
            _Source(tokenizer, self.token_bytes),  # type: ignore[arg-type]
            eos_token=sorted(tokenizer.stop_ids),
        )
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "a vocabulary is used while its tokenizer is"
        return tokenizer

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at a grammar's beginning, maybe in an error state; what was compiled lately is copied."""
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            if (kept := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return kept.deep_copy()
        limits = LLParserLimits(verbose_errors=False)
        made = on_large_stack(lambda: LLMatcher(self.for_matchers, grammar, log_level=0, limits=limits))
        if not made.is_error():
            with self._lock:
                self._compiled[grammar] = made.deep_copy()
                if len(self._compiled) > _MAX_KEPT:
                    self._compiled.popitem(last=False)
        return made


class _Source:
    """What llguidance asks of a tokenizer; the names are its own. Called with text, it gives that text's tokens."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes]) -> None:
        vocab = tokenizer.vocab
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.stop_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = tokens
        special = np.flatnonzero(np.isin(vocab.types, (CONTROL, UNKNOWN))).tolist()
        self.special_token_ids = sorted(tokenizer.stop_ids | {*special})
        # The vocabulary is kept with its tokenizer, so it must not keep the tokenizer.
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return []
        return tokenizer.encode_within(text if isinstance(text, str) else text.decode("utf-8", "replace"))


_kept: weakref.WeakKeyDictionary[Tokenizer, Vocabulary] = weakref.WeakKeyDictionary()
_building = threading.Lock()


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer, built when first asked for and kept as long as the tokenizer is.

    Raises RequestError where no token ends an answer.
    """
    found = _kept.get(tokenizer)
    if found is None:
        with _building:
            found = _kept.get(tokenizer)
            if found is None:
                found = _kept[tokenizer] = Vocabulary(tokenizer)
    return found
