"""Ops as mlx expressions, and their rules; formulas are in `pyllm.program.ops`."""
