"""Kernels in Python, for numba; imported only where they are compiled (`pyllm.backends.cpu.compiler`)."""
