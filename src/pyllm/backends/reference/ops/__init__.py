"""Ops as plain functions of float32 arrays, and their rules; what each computes is said in `pyllm.program.ops`."""
