"""The pools of KV pages and of slots for recurrent states, with prefix sharing between sequences."""

from pyllm.cache.pool import ROOT, PagePool
from pyllm.cache.states import StatePool

__all__ = ["ROOT", "PagePool", "StatePool"]
