"""Makes pooling.json: what llama.cpp makes of the states of tokens, for the cases of pooling_cases.py.

    python tests/golden/make_pooling.py

Needs llama-cpp-python (0.3.36), which the tests do not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import llama_cpp as api
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from arch_models import ArchModel
from pooling_cases import CASES, N_TOKENS, RESULTS


def main() -> None:
    api.llama_backend_init()
    with TemporaryDirectory() as folder:
        found = {name: pooled(case.made(), Path(folder) / "model.gguf") for name, case in CASES.items()}
    lines = [f" {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def pooled(model: ArchModel, path: Path) -> list[float]:
    """The vector of the first N_TOKENS tokens, or their scores."""
    model.write(path)
    loaded = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = N_TOKENS
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = params.flash_attn_type = 0
    params.embeddings = True
    context = api.llama_init_from_model(loaded, params)
    batch = api.llama_batch_init(N_TOKENS, 0, 1)
    batch.n_tokens = N_TOKENS
    for i, token in enumerate(model.tokens[:N_TOKENS]):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
    assert api.llama_decode(context, batch) == 0, model.name
    ranks = api.llama_pooling_type(context) == 4
    n = api.llama_model_n_cls_out(loaded) if ranks else api.llama_model_n_embd(loaded)
    row = np.ctypeslib.as_array(api.llama_get_embeddings_seq(context, 0), (n,))
    values = [float(str(np.float32(value))) for value in row]
    api.llama_free(context)
    api.llama_model_free(loaded)
    return values


if __name__ == "__main__":
    main()
