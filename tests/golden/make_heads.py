"""Makes files of heads/: models of archs/ with a head that guesses further tokens, and llama.cpp's logits of the head.

    python tests/golden/make_heads.py NAME …       of archs/NAME.json; options: --help

A file is as those of archs/, but for the logits: the head's at each of the tokens, given the model's state of the token
before, zeros before the first one. Needs llama-cpp-python (0.3.36), which the tests do not.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from make_archs import save

from arch_models import FOLDER, ArchModel, sample

_OUT = FOLDER.parent / "heads"
_STATES = "_Z{}llama_{}_embeddings_nextnP13llama_context{}"  # C++ names of functions that llama.h does not declare


def with_head(model: ArchModel, given: argparse.Namespace) -> ArchModel:
    """The model with a layer behind its trunk's, like one of them, and the tensors of a head."""
    block, feed_forward = given.block, given.feed_forward
    arch = model.metadata["general.architecture"]
    n, width = model.metadata[f"{arch}.block_count"], model.metadata[f"{arch}.embedding_length"]
    if block is None:
        block = max(i for i in range(n) if {f"blk.{i}.attn_q.weight", f"blk.{i}.attn_qkv.weight"} & model.shapes.keys())
        while f"blk.{block}.ssm_conv1d.weight" in model.shapes:
            block -= 1
    shapes = {k.replace(f"blk.{block}.", f"blk.{n}."): s for k, s in model.shapes.items() if f"blk.{block}." in k}
    if feed_forward is not None:
        for k, s in model.shapes.items():
            if k.startswith(f"blk.{feed_forward}."):
                shapes[k.replace(f"blk.{feed_forward}.", f"blk.{n}.").replace("attn_norm", "post_attention_norm")] = s
    if given.fused:
        each = [shapes.pop(f"blk.{n}.attn_{part}.weight") for part in "qkv"]
        shapes[f"blk.{n}.attn_qkv.weight"] = (sum(rows for rows, _ in each), width)
    more = {"eh_proj": (width, 2 * width), "enorm": (width,), "hnorm": (width,)}
    table = model.shapes["token_embd.weight"]
    more |= {"embed_tokens": table, "shared_head_head": table} if given.own else {"shared_head_norm": (width,)}
    shapes |= {f"blk.{n}.nextn.{name}.weight": shape for name, shape in more.items()}
    counts = {f"{arch}.block_count": n + 1, f"{arch}.nextn_predict_layers": 1}
    arrays = {
        k: [*v, max(v[block], v[block if feed_forward is None else feed_forward])]
        for k, v in model.metadata.items()
        if isinstance(v, list) and len(v) == n and "sections" not in k
    }
    return replace(model, metadata={**model.metadata, **arrays, **counts}, shapes={**model.shapes, **shapes})


def logits(model: ArchModel, path: Path) -> NDArray[np.float32]:
    """The head's logits [N_TOKENS, n_vocab]."""
    import llama_cpp as api

    model.write(path)
    lib = ctypes.CDLL(str(next((Path(api.__file__).parent / "lib").glob("libllama.*"))))
    params = api.llama_model_default_params()
    params.load_mtp = True
    loaded = api.llama_model_load_from_file(str(path).encode(), params)
    n_vocab, width = model.n_vocab, model.shapes["token_embd.weight"][1]

    def run(kind: int, rows: NDArray[np.float32] | None, take: Callable[[Any, int], NDArray[np.float32]]) -> Any:
        context_params = api.llama_context_default_params()
        context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = len(model.tokens)
        context_params.n_threads = context_params.n_threads_batch = 1
        context_params.type_k = context_params.type_v = context_params.flash_attn_type = 0
        context_params.ctx_type = kind
        context = api.llama_init_from_model(loaded, context_params)
        set_states = getattr(lib, _STATES.format(26, "set", "bb"))
        set_states(ctypes.c_void_p(context), ctypes.c_bool(True), ctypes.c_bool(bool(kind)))
        batch = api.llama_batch_ext_init(context)
        for i, token in enumerate(model.tokens):
            assert api.llama_batch_ext_add_token(batch, 0, token) == i
            api.llama_batch_ext_set_pos(batch, i, (ctypes.c_int32 * 1)(i))
            if rows is not None:
                place = rows[i].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                assert api.llama_batch_ext_set_embd_token(batch, i, api.llama_embd(place, 1, width))
            api.llama_batch_ext_set_output_logits(batch, i, True)
        assert api.llama_process(context, 1, batch) == 0
        found = np.stack([take(context, i) for i in range(len(model.tokens))])
        api.llama_batch_ext_free(batch)
        api.llama_free(context)
        return found

    def states(context: Any, i: int) -> NDArray[np.float32]:
        get = lib._Z30llama_get_embeddings_nextn_ithP13llama_contexti
        get.restype = ctypes.POINTER(ctypes.c_float)
        return np.ctypeslib.as_array(get(ctypes.c_void_p(context), i), (width,)).copy()

    def logits_of(context: Any, i: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (n_vocab,)).copy()

    before = np.zeros((len(model.tokens), width), np.float32)
    before[1:] = run(0, None, states)[:-1]
    found: NDArray[np.float32] = run(1, before, logits_of)
    api.llama_model_free(loaded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--block", type=int, metavar="N", help="the layer that the head's is like")
    parser.add_argument("--feed-forward", type=int, metavar="N", help="a layer that gives it a second part")
    parser.add_argument("--fused", action="store_true", help="queries, keys and values have one matrix")
    parser.add_argument("--own", action="store_true", help="a table and an output matrix of its own, and no norm")
    parser.add_argument("--without", nargs="*", default=(), metavar="KEY", help="keys to leave out")
    given = parser.parse_args()
    for name in given.names:
        model = with_head(ArchModel.load(name), given)
        kept = {k: v for k, v in model.metadata.items() if k.partition(".")[2] not in given.without}
        model = replace(model, metadata=kept)
        with TemporaryDirectory() as folder:
            found = logits(model, Path(folder) / "model.gguf")
        assert np.isfinite(found).all()
        save(replace(model, logits=sample(found)), _OUT / f"{name}{'.own' if given.own else ''}.json")
        print(name)


if __name__ == "__main__":
    main()
