"""Arguments of the CPU backend's kernels, a module for each of `kernels/`. Imports no numba: plans are made of them.

Columns are padded to whole vectors, `ld` is in bytes. A range is the address of (first, count) as int64: the rows that
are computed. Scratch is rows of bytes, one for each thread.
"""
