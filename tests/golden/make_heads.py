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
# C++ names of functions that llama.h does not declare.
_SET_STATES = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
_ALL_STATES = "_Z26llama_get_embeddings_nextnP13llama_context"
_STATES = "_Z30llama_get_embeddings_nextn_ithP13llama_contexti"
_SET_LAYER = "_Z30llama_set_embeddings_layer_inpP13llama_contextjb"
_LAYER = "_Z30llama_get_embeddings_layer_inpP13llama_contextj"


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


def eagle3(model: ArchModel) -> ArchModel:
    """A head of EAGLE-3 for a model, of another width, that reads the inputs of three layers."""
    arch = model.metadata["general.architecture"]
    n, width, n_ff, dim = model.metadata[f"{arch}.block_count"], 96, 160, 24
    n_vocab, of_model = model.shapes["token_embd.weight"]
    sizes = {
        "block_count": 1, "context_length": 512, "embedding_length": width, "feed_forward_length": n_ff,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": dim,
        "attention.value_length": dim, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": dim,
        "rope.freq_base": 10000.0, "target_layers": [0, n // 2, n - 1], "target_hidden_size": of_model,
    }  # fmt: skip
    shapes = {
        "fc.weight": (width, 3 * of_model), "token_embd.weight": (n_vocab, width), "output.weight": (n_vocab, width),
        "output_norm.weight": (width,), "blk.0.attn_norm.weight": (width,), "blk.0.attn_norm_2.weight": (width,),
        "blk.0.attn_q.weight": (4 * dim, 2 * width), "blk.0.attn_k.weight": (2 * dim, 2 * width),
        "blk.0.attn_v.weight": (2 * dim, 2 * width), "blk.0.attn_output.weight": (width, 4 * dim),
        "blk.0.ffn_norm.weight": (width,), "blk.0.ffn_gate.weight": (n_ff, width), "blk.0.ffn_up.weight": (n_ff, width),
        "blk.0.ffn_down.weight": (width, n_ff),
    }  # fmt: skip
    metadata = {"general.architecture": "eagle3"} | {f"eagle3.{key}": value for key, value in sizes.items()}
    return replace(model, metadata=metadata, shapes=shapes, seed=model.seed + 1)


class Loaded:
    """A model in llama.cpp, which runs all of a tiny model's tokens in one step."""

    def __init__(self, model: ArchModel, path: Path) -> None:
        import llama_cpp as api

        self._api, self._lib = api, ctypes.CDLL(str(next((Path(api.__file__).parent / "lib").glob("libllama.*"))))
        params = api.llama_model_default_params()
        params.load_mtp = True
        self._model = api.llama_model_load_from_file(str(model.write(path)).encode(), params)
        assert self._model, "llama.cpp does not load the model"
        self.tokens = model.tokens
        self.n_vocab, self.width = model.shapes["token_embd.weight"]

    def call(self, name: str, context: Any, *arguments: Any) -> Any:
        """A function that llama.h does not declare, by its C++ name; what it returns is read as a pointer to floats."""
        function = self._lib[name]
        function.restype = ctypes.POINTER(ctypes.c_float)
        return function(ctypes.c_void_p(context), *arguments)

    def states(self, masked: bool) -> Callable[[Any], None]:
        """Has a context give the states that heads read."""
        return lambda context: self.call(_SET_STATES, context, ctypes.c_bool(True), ctypes.c_bool(masked))

    def run(
        self,
        take: Callable[[Any, int], Any],
        width: int,
        rows: NDArray[np.float32] | None = None,
        *,
        kind: int = 0,
        encode: bool = False,
        prepare: Callable[[Any], None] = lambda context: None,
    ) -> NDArray[np.float32]:
        """What `take` gives of each token, [N_TOKENS, width]. `rows`: given with the tokens, or to an encoder alone."""
        api, n = self._api, len(self.tokens)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = params.flash_attn_type = 0
        params.ctx_type = kind
        context = api.llama_init_from_model(self._model, params)
        prepare(context)
        batch = api.llama_batch_ext_init(context)
        for i, token in enumerate(self.tokens):
            row = None
            if rows is not None:
                row = api.llama_embd(rows[i].ctypes.data_as(ctypes.POINTER(ctypes.c_float)), 1, rows.shape[1])
            if encode:
                assert api.llama_batch_ext_add_embd(batch, 0, row) == i
            else:
                assert api.llama_batch_ext_add_token(batch, 0, token) == i
                assert row is None or api.llama_batch_ext_set_embd_token(batch, i, row)
            api.llama_batch_ext_set_pos(batch, i, (ctypes.c_int32 * 1)(i))
            api.llama_batch_ext_set_output_logits(batch, i, True)
        assert api.llama_process(context, 0 if encode else 1, batch) == 0
        found = np.stack([np.ctypeslib.as_array(take(context, i), (width,)).copy() for i in range(n)])
        api.llama_batch_ext_free(batch)
        api.llama_free(context)
        return found

    def logits(self, rows: NDArray[np.float32], **options: Any) -> NDArray[np.float32]:
        """A head's logits, given each token's row of the token before."""
        before = np.zeros_like(rows)
        before[1:] = rows[:-1]
        return self.run(self._api.llama_get_logits_ith, self.n_vocab, before, **options)


def logits(model: ArchModel, folder: Path) -> NDArray[np.float32]:
    """The head's logits [N_TOKENS, n_vocab]."""
    loaded = Loaded(model, folder / "model.gguf")
    states = loaded.run(lambda c, i: loaded.call(_STATES, c, i), loaded.width, prepare=loaded.states(False))
    return loaded.logits(states, kind=1, prepare=loaded.states(True))


def of_eagle3(head: ArchModel, model: ArchModel, folder: Path) -> NDArray[np.float32]:
    """The logits [N_TOKENS, n_vocab] of an EAGLE-3 head of a model."""
    trunk, loaded = Loaded(model, folder / "model.gguf"), Loaded(head, folder / "head.gguf")
    layers = head.metadata["eagle3.target_layers"]

    def prepare(context: Any) -> None:
        for il in layers:
            trunk.call(_SET_LAYER, context, ctypes.c_uint32(il), ctypes.c_bool(True))

    def state(il: int) -> Callable[[Any, int], Any]:
        def take(context: Any, i: int) -> Any:
            rows = trunk.call(_LAYER, context, ctypes.c_uint32(il))
            return np.ctypeslib.as_array(rows, (len(model.tokens), trunk.width))[i]

        return take

    states = [trunk.run(state(il), trunk.width, prepare=prepare) for il in layers]
    features = loaded.run(
        lambda c, i: np.ctypeslib.as_array(loaded.call(_ALL_STATES, c), (len(head.tokens), loaded.width))[i],
        loaded.width,
        np.concatenate(states, axis=1),
        encode=True,
        prepare=loaded.states(True),
    )
    return loaded.logits(features, prepare=loaded.states(True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--block", type=int, metavar="N", help="the layer that the head's is like")
    parser.add_argument("--feed-forward", type=int, metavar="N", help="a layer that gives it a second part")
    parser.add_argument("--fused", action="store_true", help="queries, keys and values have one matrix")
    parser.add_argument("--own", action="store_true", help="a table and an output matrix of its own, and no norm")
    parser.add_argument("--without", nargs="*", default=(), metavar="KEY", help="keys to leave out")
    parser.add_argument("--eagle3", action="store_true", help="heads of EAGLE-3, in eagle3/, for models as they are")
    given = parser.parse_args()
    for name in given.names:
        with TemporaryDirectory() as folder:
            if given.eagle3:
                model = eagle3(trunk := ArchModel.load(name))
                found, path = of_eagle3(model, trunk, Path(folder)), _OUT.parent / "eagle3" / f"{name}.json"
            else:
                model = with_head(ArchModel.load(name), given)
                kept = {k: v for k, v in model.metadata.items() if k.partition(".")[2] not in given.without}
                model = replace(model, metadata=kept)
                found, path = logits(model, Path(folder)), _OUT / f"{name}{'.own' if given.own else ''}.json"
        assert np.isfinite(found).all()
        save(replace(model, logits=sample(found)), path)
        print(name)


if __name__ == "__main__":
    main()
