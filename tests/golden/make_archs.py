"""Makes files of archs/: tiny models of an architecture, their weights from a seed, and llama.cpp's logits.

    python tests/golden/make_archs.py --oracle FOLDER NAME …      models that llama.cpp's own test saves
    python tests/golden/make_archs.py FILE.json …                 described by hand: seed, metadata, tensors
    python tests/golden/make_archs.py NAME … --variant regrouped  other head counts, experts and widths
    python tests/golden/make_archs.py NAME … --variant yarn --set rope.scaling.type=yarn rope.scaling.factor=8.0
    python tests/golden/make_archs.py NAME …                      files that are there, anew
    python tests/golden/make_archs.py published/FILE.json --large    a large model, in place, without the other checks

The folder is what `test-llama-archs -o FOLDER` of llama.cpp writes. NAME.gguf gives metadata and shapes; keys that say
nothing (zero, empty, not finite, -1) are left out where llama.cpp gives the same logits without them. A variant is
called NAME.VARIANT.json; its shapes follow from what llama.cpp expects. Values after --set are as in JSON or a word,
and null removes a key. What is printed: how much logits change with weights by a millionth (NMSE), and which tensors
hardly matter. Needs llama-cpp-python (0.3.36), which the tests do not.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property, reduce
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from arch_models import FOLDER, ArchModel, sample
from pyllm.gguf import open_gguf

_MOST_CHANGE = 1e-8  # NMSE of the logits when weights change by a millionth: as much as float32 allows for
_LEAST_CHANGE = 1e-5  # NMSE when a tensor becomes another: tests would notice
_NAMES = ("general.name", "general.size_label")


Weights = Mapping[str, NDArray[np.float32]]


class Refused(Exception):
    """llama.cpp does not run the model; why."""


class LlamaCpp:
    """llama.cpp in a process of its own: a model that it cannot run may end it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "model.gguf"

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("fork"))

    def close(self) -> None:
        self._pool.shutdown()

    def logits(self, model: ArchModel, weights: Weights | None = None) -> NDArray[np.float32]:
        """Logits [N_TOKENS, n_vocab] of a model, some of its weights replaced, or its states [N_TOKENS, n_embd] where
        pyllm has no head for it; Refused with llama.cpp's messages."""
        model.write(self._path, weights)
        try:
            found = self._pool.submit(_logits, str(self._path), model.tokens, model.source, not model.has_head).result()
        except BrokenProcessPool:
            del self._pool
            raise Refused("the process of llama.cpp died") from None
        if isinstance(found, str):
            raise Refused(found)
        if not np.isfinite(found).all():
            raise Refused("the logits are not finite")
        return found


_lines: list[str] = []
_kept: list[Any] = []  # llama.cpp calls it as long as the process lives


def _logits(path: str, tokens: list[int], source: list[int], states: bool) -> NDArray[np.float32] | str:
    """Logits, or states in place of them, or why there are none; in the process of llama.cpp. `source`: what an encoder
    reads before."""
    import llama_cpp as api

    if not _kept:
        _kept.append(api.llama_log_callback(lambda level, text, _: _lines.append(text.decode(errors="replace"))))
        api.llama_log_set(_kept[0], ctypes.c_void_p(0))
        api.llama_backend_init()
    _lines.clear()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        return "".join(_lines)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0  # none
    params.embeddings, params.pooling_type = states, 0  # each token's
    context = api.llama_init_from_model(model, params)
    if not context:
        return "".join(_lines)
    n_vocab, n_embd = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)), api.llama_model_n_embd(model)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    decodes = api.llama_model_has_decoder(model)
    passes = [(api.llama_decode, tokens)] if decodes else [(api.llama_encode, tokens)]
    if decodes and api.llama_model_has_encoder(model):
        passes = [(api.llama_encode, source), *passes]
    for compute, read in passes:
        batch.n_tokens = len(read)
        for i, token in enumerate(read):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        if compute(context, batch):
            return "".join(_lines)
    row, width = (api.llama_get_embeddings_ith, n_embd) if states else (api.llama_get_logits_ith, n_vocab)
    rows = [np.ctypeslib.as_array(row(context, i), (width,)).copy() for i in range(len(tokens))]
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return np.stack(rows)


def of_oracle(path: Path, seed: int) -> ArchModel:
    """Metadata and shapes of a model that llama.cpp's test saved."""
    with open_gguf(path) as file:
        metadata = {
            key: _as_json(value)
            for key, value in file.metadata.items()
            if not key.startswith("tokenizer.") and key not in _NAMES and np.size(value)
        }
        # Only products of NVFP4 have scales of inputs.
        shapes = {name: t.shape for name, t in file.tensors.items() if not name.endswith(".input_scale")}
        others = {t.format for t in file.tensors.values()} - {"F32"}
    if others:
        raise Refused(f"it has tensors of {', '.join(others)}")
    return ArchModel(path.stem, metadata, shapes, seed, np.zeros(0, np.float32))


def without_unused(model: ArchModel, llama: LlamaCpp) -> ArchModel:
    """The model without keys that say nothing, and without scales that llama.cpp does not apply."""
    full = llama.logits(model)

    def same(other: ArchModel) -> bool:
        try:
            return bool(np.array_equal(llama.logits(other), full))
        except Refused:
            return False

    def less(model: ArchModel, key: str) -> ArchModel:
        return replace(model, metadata={k: v for k, v in model.metadata.items() if k != key})

    short = reduce(less, unused := [key for key, value in model.metadata.items() if _says_nothing(value)], model)
    if same(short):
        model = short
    else:
        for key in unused:
            model = short if same(short := less(model, key)) else model
    for kind in {name.rpartition("blk.")[2].lstrip("0123456789") for name in model.shapes if name.endswith(".scale")}:
        kept = {name: shape for name, shape in model.shapes.items() if not name.endswith(kind)}
        model = short if same(short := replace(model, shapes=kept)) else model
    return model


def _says_nothing(value: Any) -> bool:
    if isinstance(value, list):
        return all(_says_nothing(v) for v in value)
    return not value or value in (-1, 2**32 - 1) or (isinstance(value, float) and not np.isfinite(value))


def changed(model: ArchModel, changes: Mapping[str, Any], llama: LlamaCpp) -> ArchModel:
    """The model with other metadata, and shapes as llama.cpp then expects them."""
    arch, before = model.metadata["general.architecture"], model
    metadata = model.metadata | {k if k.startswith(f"{arch}.") else f"{arch}.{k}": v for k, v in changes.items()}
    model = replace(model, metadata={key: value for key, value in metadata.items() if value is not None})
    for _ in range(2 * len(model.shapes)):
        try:
            logits = llama.logits(model)
            if model.shapes == before.shapes:
                effect = replace(model, logits=sample(logits)).nmse(llama.logits(before))
                print(f"{model.name}: logits are others by an NMSE of {effect:.0e} with {dict(changes)}")
            return model
        except Refused as refused:
            wrong = re.search(r"tensor '(\S+)' has wrong shape; expected ([\d, ]+), got", str(refused))
            if not wrong:
                raise
            name, shape = wrong[1], tuple(int(d) for d in wrong[2].split(",") if d.strip())[::-1]
            while len(shape) > 1 and shape[0] == 1 and len(shape) > len(model.shapes[name]):
                shape = shape[1:]
            model = replace(model, shapes=model.shapes | {name: shape})
    raise Refused("no shapes were found that llama.cpp takes")


def regrouped(model: ArchModel) -> dict[str, Any]:
    """Twice the heads, of half the size; fewer KV heads; three of eight experts; narrower feed-forward."""
    arch = model.metadata["general.architecture"]
    own = {key.removeprefix(f"{arch}."): value for key, value in model.metadata.items()}
    heads, kv_heads = own.get("attention.head_count"), own.get("attention.head_count_kv")
    changes: dict[str, Any] = {}
    if isinstance(heads, int) and isinstance(kv_heads, int):
        changes |= {"attention.head_count": 2 * heads, "attention.head_count_kv": min(kv_heads, heads)}
        sizes = ("attention.key_length", "attention.value_length", "rope.dimension_count")
        for key in sizes if "attention.kv_lora_rank" not in own else ():  # latent rows have the sizes of all heads
            changes |= {k: own[k] // 2 for k in (key, f"{key}_swa") if k in own}
        if "attention.scale" in own:  # as saved, it is what follows from the size of heads, and not always read
            changes["attention.scale"] = None
    if "expert_count" in own:
        changes |= {"expert_count": 8, "expert_used_count": 3}
    for key in ("feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"):
        if isinstance(own.get(key), int):
            changes[key] = own[key] * 5 // 6
    return changes


def with_logits(model: ArchModel, llama: LlamaCpp) -> ArchModel:
    return replace(model, logits=sample(llama.logits(model)))


def checked(model: ArchModel, llama: LlamaCpp) -> tuple[ArchModel, str]:
    """The model with llama.cpp's logits, and what was noticed; Refused where these depend on the last bits."""
    model = with_logits(model, llama)
    other = replace(model, seed=model.seed + 1000).weights
    nudged = {name: w * (1 + np.float32(1e-6) * np.sign(other[name])) for name, w in model.weights.items()}
    change = model.nmse(llama.logits(model, nudged))
    if change > _MOST_CHANGE:
        raise Refused(f"weights that change by a millionth change logits by an NMSE of {change:.0e}")
    effects = {name: model.nmse(llama.logits(model, {name: w})) for name, w in other.items()}
    weak = [f"{name} ({effect:.0e})" for name, effect in effects.items() if effect < _LEAST_CHANGE]
    return model, f"{change:.0e}" + (f", hardly matter: {', '.join(weak)}" if weak else "")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_json(value: Any) -> Any:
    """A value of metadata for JSON; float32 in the shortest way."""
    if isinstance(value, np.ndarray):
        return [_as_json(v) for v in value.tolist()]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def save(model: ArchModel, path: Path) -> None:
    held = {
        "seed": model.seed,
        **({"kinds": model.kinds} if model.kinds else {}),
        "metadata": dict(sorted(model.metadata.items())),
        "tensors": {name: list(shape) for name, shape in model.shapes.items()},
        "logits": base64.b64encode(model.logits.astype("<f4").tobytes()).decode(),
    }
    lines = json.dumps(held, indent=1, ensure_ascii=False)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda m: json.dumps(json.loads(m[0])), lines)
    path.write_text(flat + "\n", "utf-8")


def described(what: str, a: argparse.Namespace, llama: LlamaCpp) -> ArchModel:
    """The model to make, without logits; its name is the file's."""
    if a.oracle:
        model = without_unused(of_oracle(a.oracle / f"{what}.gguf", a.seed or 1), llama)
    else:
        model = ArchModel.read(Path(what) if what.endswith(".json") else FOLDER / f"{what}.json")
    changes = {key: _parsed(value) for key, _, value in (text.partition("=") for text in a.set)}
    if a.variant == "regrouped":
        changes = regrouped(model) | changes
    if changes:
        model = changed(model, changes, llama)
    seed = a.seed or (model.seed + 1 if a.variant else model.seed)
    return replace(model, seed=seed, name=model.name + (f".{a.variant}" if a.variant else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME")
    parser.add_argument("--oracle", type=Path, metavar="FOLDER")
    parser.add_argument("--variant", metavar="NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--large", action="store_true")
    a = parser.parse_args()
    with TemporaryDirectory() as folder:
        llama = LlamaCpp(Path(folder))
        for what in a.models:
            try:
                if a.large:
                    save(with_logits(described(what, a, llama), llama), Path(what))
                    continue
                model, notes = checked(described(what, a, llama), llama)
            except Refused as why:
                print(f"{what}: not made, {str(why).strip()[-400:]}", flush=True)
                continue
            save(model, FOLDER / f"{model.name}.json")
            print(f"{model.name}: {notes}", flush=True)
        llama.close()


if __name__ == "__main__":
    main()
