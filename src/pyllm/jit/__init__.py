"""Compiled code for the processor at hand: the compiler, vectors, threads that run kernels, memory they work on.

Whoever computes on the CPU uses this room: the CPU backend, and the encoders of `pyllm.quant`.
"""
