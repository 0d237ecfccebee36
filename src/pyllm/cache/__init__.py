"""KV memory's book-keeping: a pool of pages, shared between sequences that begin alike."""

from pyllm.cache.pool import ROOT, PagePool

__all__ = ["ROOT", "PagePool"]
