"""Kernels of tokenizers, imported only where they are compiled. Texts are bytes at addresses; nothing is allocated."""
