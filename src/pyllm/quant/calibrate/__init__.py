"""What a model says of its own quantization: importances, sensitivities, the best formats of a size.

A room above the rest of `quant`: it runs models.
"""
