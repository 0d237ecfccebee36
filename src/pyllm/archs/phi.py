"""Phi 3 and 4: fused projections, longrope factors."""

from __future__ import annotations

from pyllm.archs.blocks import Transformer


class Phi3(Transformer):
    """The file's `attention.sliding_window` is not used: the published models were not trained to keep to it, and
    llama.cpp sees everything as well."""


ARCHITECTURES = {"phi3": Phi3}
