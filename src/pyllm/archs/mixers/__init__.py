"""Mixers: the computations of a layer's parts, in modules by kind."""
