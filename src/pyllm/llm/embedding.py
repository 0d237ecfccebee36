"""Embeddings, ranks and classes of texts: the part of `LLM` that reads and does not write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from pyllm.arguments import checked
from pyllm.errors import RequestError
from pyllm.llm import preparing
from pyllm.llm.prompts import Prompt, PromptOrPrompts
from pyllm.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.archs import Architecture
    from pyllm.engine import Engine
    from pyllm.gguf import GGUFFile
    from pyllm.llm.pooling import Pooler
    from pyllm.tokenizers import Tokenizer

Pooling = Literal["mean", "cls", "last", "none"]
"""The mean of all tokens' states, the first or the last token's, or each token's own."""
Progress = Callable[[int, int], object]
"""Called with the number of texts that are done, and of all."""
_PROMPT = "sentence_transformers.prompt."
"""Beginning of the metadata keys of texts that are put before others, by name."""
_DEFAULT_PROMPT = "sentence_transformers.default_prompt_name"
_RERANK_TEMPLATE = "tokenizer.chat_template.rerank"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document and how well it answers a query."""

    index: int
    """Its place among the documents."""
    score: float


class Embeds:
    """What `LLM` knows of embeddings."""

    _file: GGUFFile
    engine: Engine
    architecture: Architecture

    @property
    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    @property
    def metadata(self) -> Mapping[str, Any]:
        raise NotImplementedError

    @overload
    def embed(
        self,
        text: PromptOrPrompts,
        *,
        pooling: Literal["mean", "cls", "last"] | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self,
        text: PromptOrPrompts,
        *,
        pooling: Pooling,
        normalize: bool = True,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]: ...
    @checked
    def embed(
        self,
        text: PromptOrPrompts,
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Embedding of a text, float32 [n], or of several, [n_texts, n]; texts are computed side by side.

        `pooling`: of the states of a text's tokens, behind the last norm: "mean", "cls" (the first token's), "last", or
        "none" (each token's, [n_tokens, n_embd], several as a list); default: as the file says, else the mean. Dense
        layers that the file has follow. `normalize`: to length 1. `dimensions`: the first so many numbers, for models
        that are made for it. `prompt_name`: which of the file's prompts, such as "query", comes before each text.
        Token ids are accepted in place of text. `progress(done, total)` is called after each text.

        Raises RequestError (an empty text), ContextFullError (a text that is longer than the context).
        """
        import numpy as np

        texts, alone = _as_several(text)
        tokens = [self._tokens_of(one, prompt_name) for one in texts]
        rows = self._pooled(tokens, pooling or self._pooler.pooling, progress)
        if pooling != "none":
            rows = [self._pooler.dense(row) for row in rows]
        found = [self._shaped(row, normalize, dimensions) for row in rows]
        if alone:
            return found[0]
        if pooling == "none":
            return found
        return np.stack(found) if found else np.empty((0, dimensions or self.architecture.n_embd), np.float32)

    @checked
    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        normalize: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Ranked]:
        """Documents by how well they answer a query, the best first; at most `top_n`.

        The model is a cross-encoder: a file with a classifier. A score is the first of it; with `normalize` a single
        one is put between 0 and 1 (logistic function), else it is as the model gives it.
        Raises RequestError where the file has no classifier, ContextFullError.
        """
        from pyllm.llm.pooling import sigmoid

        tokens = [self._pair(query, document) for document in documents]
        found = []
        for index, scores in enumerate(self._scores(tokens, progress)):
            score = sigmoid(scores) if normalize and len(scores) == 1 else scores
            found.append(Ranked(index, float(score[0])))
        return sorted(found, key=lambda ranked: -ranked.score)[:top_n]

    @checked
    def classify(
        self,
        text: PromptOrPrompts,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Probability of each label for a text, or for several; labels without a name in the file are "0", "1", ….

        Raises RequestError where the file has no classifier, ContextFullError.
        """
        from pyllm.llm.pooling import sigmoid, softmax

        texts, alone = _as_several(text)
        labels, found = self._pooler.labels, []
        for scores in self._scores([self._tokens_of(one, None) for one in texts], progress):
            names = labels if len(labels) == len(scores) else [str(i) for i in range(len(scores))]
            shares = sigmoid(scores) if len(scores) == 1 else softmax(scores)
            found.append(dict(zip(names, map(float, shares), strict=True)))
        return found[0] if alone else found

    @cached_property
    def _pooler(self) -> Pooler:
        from pyllm.llm.pooling import Pooler

        return Pooler(self._file, causal=not self.architecture.program.whole)

    def _tokens_of(self, text: Prompt, prompt_name: str | None) -> list[int]:
        if isinstance(text, str):
            text = self._prompt(prompt_name) + text
        tokens = preparing.prompt_tokens(self, text, parse_special=False)  # type: ignore[arg-type]
        if not tokens:
            raise RequestError("an empty text has no embedding with this model")
        return tokens

    def _prompt(self, name: str | None) -> str:
        """The file's text of this name, which is put before others."""
        name = self.metadata.get(_DEFAULT_PROMPT) if name is None else name
        if name is None:
            return ""
        found = self.metadata.get(f"{_PROMPT}{name}")
        if not isinstance(found, str):
            known = [key.removeprefix(_PROMPT) for key in self.metadata if key.startswith(_PROMPT)]
            raise RequestError(f"prompt_name {name!r} is not in the file; it has {', '.join(known) or 'no prompts'}")
        return found

    def _pair(self, query: str, document: str) -> list[int]:
        """A query and a document as the model's classifier takes them."""
        template = self.metadata.get(_RERANK_TEMPLATE)
        if not isinstance(template, str):
            return self.tokenizer.encode_pair(query, document)
        ids: list[int] = []
        for i, part in enumerate(_cut(template)):
            if i % 2:
                ids += self.tokenizer.encode_within(query if part == "{query}" else document)
            else:
                ids += self.tokenizer.encode_pieces(self.tokenizer.partition(part))
        return ids

    def _scores(self, tokens: Sequence[Sequence[int]], progress: Progress | None) -> Iterator[NDArray[np.float32]]:
        pooler = self._pooler
        if not pooler.ranks:
            raise RequestError(f"{self._file.path} has no classifier; embed() gives vectors to compare")
        return map(pooler.scores, self._pooled(tokens, pooler.pooling, progress))

    def _pooled(
        self, tokens: Sequence[Sequence[int]], pooling: Pooling, progress: Progress | None
    ) -> list[NDArray[np.float32]]:
        """A pooled row of each sequence; all rows without pooling."""
        from pyllm.llm.pooling import Collector

        collectors = [Collector(pooling, len(ids)) for ids in tokens]
        given = ((ids, one.take, one.first) for ids, one in zip(tokens, collectors, strict=True))
        for number in self.engine.read_hidden(given):
            if progress is not None:
                progress(number + 1, len(tokens))
        return [one.result for one in collectors]

    def _shaped(self, row: NDArray[np.float32], normalize: bool, dimensions: int | None) -> NDArray[np.float32]:
        from pyllm.llm.pooling import normed

        if dimensions is not None:
            if not 1 <= dimensions <= row.shape[-1]:
                raise RequestError(f"dimensions must be from 1 to {row.shape[-1]}, which the model has")
            row = row[..., :dimensions]
        return normed(row) if normalize else row


def _as_several(text: Any) -> tuple[Sequence[Any], bool]:
    """Texts, each also as token ids, of one or several; and whether it was one."""
    alone = isinstance(text, str) or (bool(text) and isinstance(text[0], int))
    return [text] if alone else text, alone


def _cut(template: str) -> list[str]:
    """A template's text and its places for query and document, in turn."""
    import re

    return re.split(r"(\{query\}|\{document\})", template)
