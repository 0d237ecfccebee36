"""Mixers: what the parts of a layer compute, in modules by kind."""
