"""A vocabulary from GGUF metadata: token texts, kinds, scores, and the tokens with a role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import TokenizerError

# Values of tokenizer.ggml.token_type (ggml's llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Roles known by their text where no key names them; llama.cpp's lists.
_END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
_END_OF_GENERATION = (
    *_END_OF_TURN, "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>",
    "<turn|>", "<|tool_response>", "[e~[",
)  # fmt: skip
_FIM = {
    "prefix": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|prefix|>",
               "<|code_prefix|>"),
    "suffix": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|suffix|>",
               "<|code_suffix|>"),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|middle|>",
               "<|code_middle|>"),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "repo": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "file": ("<|file_sep|>",),
}  # fmt: skip
_FIM_ENDS = ("pad", "repo", "file")  # a model that writes one of these has ended its answer
_FIM_KEYS = {  # with the names that old files use
    "prefix": ("fim_pre", "prefix"), "suffix": ("fim_suf", "suffix"), "middle": ("fim_mid", "middle"),
    "pad": ("fim_pad",), "repo": ("fim_rep",), "file": ("fim_sep",),
}  # fmt: skip
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # structure of an answer, to be seen


class Vocab:
    """Texts, kinds and roles of tokens.

    `texts[id]` is a token as stored; `types` uint8 [n], `scores` float32 [n]. `ids` maps text to id for tokens that
    plain text may become, `special_ids` for the rest (control and unknown tokens), which only `parse_special` reaches.
    Of two tokens with one text the first counts. Up to `n_rows` tokens are made up, unused ones that no text becomes.

    Raises TokenizerError where lists are missing, of a wrong kind, or shorter than the vocabulary.
    """

    def __init__(
        self, metadata: Mapping[str, Any], defaults: Mapping[str, int] | None = None, n_rows: int | None = None
    ) -> None:
        self.texts = string_list(metadata, "tokenizer.ggml.tokens")
        n = len(self.texts)
        if n == 0:
            raise TokenizerError("tokenizer.ggml.tokens is empty; the model can be used by token ids only")
        self.types = _numbers(metadata, "tokenizer.ggml.token_type", n, NORMAL).astype(np.uint8)
        self.scores = np.nan_to_num(
            _numbers(metadata, "tokenizer.ggml.scores", n, 0).astype(np.float32), nan=-np.inf, neginf=-np.inf
        )
        self.ids: dict[str, int] = dict(zip(reversed(self.texts), range(n - 1, -1, -1), strict=True))
        if n_rows is not None and n_rows > n:
            self.texts = [*self.texts, *(f"[PAD{i}]" for i in range(n, n_rows))]
            self.types = np.concatenate([self.types, np.full(n_rows - n, UNUSED, np.uint8)])
            self.scores = np.concatenate([self.scores, np.zeros(n_rows - n, np.float32)])
        self._metadata, self._defaults = metadata, defaults or {}
        self.bos_id = self.role("bos")
        self.eos_id = self.role("eos")
        self.unk_id = self.role("unknown", "unk")
        self.sep_id = self.role("seperator", "separator", "sep")  # the first is how the key is spelled
        self.pad_id = self.role("padding", "pad")
        self.fim_ids: dict[str, int] = self._find_fim()
        self.shown_ids: set[int] = set()  # control tokens that are nevertheless part of an answer's text
        self.stop_ids: frozenset[int] = frozenset(self._find_stops())
        self.special_ids: dict[str, int] = {}
        for i in np.flatnonzero((self.types == CONTROL) | (self.types == UNKNOWN)).tolist():
            text = self.texts[i]
            if self.ids.get(text) == i:
                del self.ids[text]
                self.special_ids[text] = i
        self.user_ids: dict[str, int] = {
            self.texts[i]: i for i in np.flatnonzero(self.types == USER_DEFINED).tolist() if self.texts[i]
        }

        # Phi-3's special tokens swallow the blanks after them; only the model's name tells this.
        name = str(metadata.get("general.name", "")).lower()
        self.swallowing_ids: frozenset[int] = frozenset()
        if "phi-3" in name or "phi3" in name:
            specials = self.special_ids | self.user_ids
            kept = ("<unk>", "<s>", "<|endoftext|>")
            self.swallowing_ids = frozenset(i for text, i in specials.items() if text not in kept)

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, text: str) -> int | None:
        """Id of the token stored as `text`, of any kind; None if there is none."""
        i = self.ids.get(text)
        return self.special_ids.get(text) if i is None else i

    def flag(self, name: str, default: bool) -> bool:
        """A boolean of the metadata, such as `add_bos_token`."""
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        return default if value is None else bool(value)

    def role(self, *names: str) -> int | None:
        """Id of a role by the metadata, else by the vocabulary kind's default, else None.

        An id outside the vocabulary counts as absent.
        """
        for name in names:
            value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(value, int | np.integer) and 0 <= value < len(self.texts):
                return int(value)
        default = self._defaults.get(names[0])
        return default if default is not None and default < len(self.texts) else None

    def _control(self, text: str) -> int | None:
        """Id of a token with a role known by its text; whatever kind the file states, it is a control token."""
        i = self.ids.get(text)
        if i is not None:
            self.types[i] = CONTROL
        return i

    def _find_fim(self) -> dict[str, int]:
        found = {}
        for part, texts in _FIM.items():
            i = self.role(*_FIM_KEYS[part])
            if i is None:
                i = next((j for text in texts if (j := self._control(text)) is not None), None)
            if i is not None:
                found[part] = i
        return found

    def _find_stops(self) -> set[int]:
        known = {
            text: i for text in _END_OF_GENERATION if not self._is_html(text) and (i := self._control(text)) is not None
        }
        self.shown_ids.update(self.ids[text] for text in _HARMONY if text in self.ids)
        # Harmony and Solar end a message, not the answer, with <|end|>; with Gemma 4 </s> is plain text.
        ends_message = {"<|return|>", "<|call|>"} <= known.keys() or {"<|flush|>", "<|calls|>"} <= known.keys()
        if ends_message and (end := known.pop("<|end|>", None)) is not None:
            self.shown_ids.add(end)
        if "<|tool_response>" in known and (end := known.pop("</s>", None)) is not None:
            self.types[end] = NORMAL
        stops = {self.fim_ids[part] for part in _FIM_ENDS if part in self.fim_ids}
        stops.update(known.values())
        stops.update(i for name in ("eos", "eot", "eom") if (i := self.role(name)) is not None)
        return stops

    def _is_html(self, text: str) -> bool:
        """Whether "</s>" is an ordinary token, as in Qwen's vocabulary: then it closes a tag, not the answer."""
        i = self.ids.get(text)
        return text == "</s>" and i is not None and self.types[i] == NORMAL and i != self.eos_id


def ends_generation(text: str) -> bool:
    """Whether a token of this text ends an answer in any vocabulary, without a key that says so."""
    return text in _END_OF_GENERATION


def string_list(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings of the metadata. Raises TokenizerError."""
    value = metadata.get(key)
    if not isinstance(value, list) or not set(map(type, value)) <= {str}:
        raise TokenizerError(f"{key} is missing or not a list of strings; the model can be used by token ids only")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, n: int, default: int) -> NDArray[Any]:
    """At least `n` numbers, cut to `n`; all `default` where the file has none."""
    value = metadata.get(key)
    if value is None:
        return np.full(n, default)
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise TokenizerError(f"{key} is not a list of numbers")
    if len(array) < n:
        raise TokenizerError(f"{key} has {len(array)} entries for a vocabulary of {n} tokens; the file is damaged")
    return array[:n]
