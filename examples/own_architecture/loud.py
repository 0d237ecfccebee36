"""An architecture that pyllm does not have: a llama whose embeddings are multiplied by sqrt(n_embd).

Installing this folder (pip install examples/own_architecture) registers it: files whose `general.architecture` is
"loud" run from then on, on every backend. docs/architectures.md says what else a class may change.
"""

from pyllm.archs.blocks import Transformer


class Loud(Transformer):
    """Found through the entry point in pyproject.toml."""

    rope_interleaved = True
    embed_scaled = True
