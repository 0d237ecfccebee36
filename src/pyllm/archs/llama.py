"""Llama and what shares its layout: Llama 1 to 3, Mistral, Mixtral, Ministral 3, SmolLM."""

from __future__ import annotations

from pyllm.archs.blocks import Transformer
from pyllm.errors import ModelError


class Llama(Transformer):
    """Dense, or (Mixtral) a mixture of experts where the file counts some."""

    rope_interleaved = True
    ffn_scaled = True


class Mistral3(Llama):
    """Ministral 3: beyond the context of the first training it would scale queries by position."""

    def attention_scale(self) -> float:
        n_ctx_orig = self._scaling.n_ctx_orig
        if self.hp.number("attention.temperature_scale", 0.0) and self.n_ctx > n_ctx_orig:
            raise ModelError(
                f"this model scales attention by position beyond {n_ctx_orig} positions, which pyllm does not do; "
                f"load it with a context of at most {n_ctx_orig}"
            )
        return super().attention_scale()


class SmolLM3(Llama):
    """Every fourth layer goes without rotary positions."""

    no_rope_period = 4
    ffn_scaled = False


ARCHITECTURES = {"llama": Llama, "mistral3": Mistral3, "smollm3": SmolLM3}
