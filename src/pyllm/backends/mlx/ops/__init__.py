"""Ops as mlx expressions, and their rules; what each computes is said in `pyllm.program.ops`."""
