"""Quantization measured on the running model: importance, sensitivities, the best formats for a size.

This package runs models, so it is above the rest of `quant`.
"""
