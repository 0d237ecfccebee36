"""Compiled code for this processor: the compiler, SIMD vectors, threads that run kernels, and their memory.

Used by the CPU backend, the encoders of `pyllm.quant`, and compiled tokenizers.
"""
