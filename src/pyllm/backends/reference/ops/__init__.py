"""Ops as plain functions of float32 arrays, and their rules; formulas are in `pyllm.program.ops`."""
