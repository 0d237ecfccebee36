"""The KV cache's pages: a pool, with prefix sharing between sequences."""

from pyllm.cache.pool import ROOT, PagePool

__all__ = ["ROOT", "PagePool"]
