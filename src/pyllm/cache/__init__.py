"""The pools of KV pages and of slots for recurrent states, with prefix sharing between sequences; both in files."""

from pyllm.cache.folder import CacheFolder
from pyllm.cache.pool import ROOT, ROOT_DIGEST, PagePool, Published, digest_of
from pyllm.cache.saved import Layout, Saved, SavedFile, SavedPage, SavedState, write_head, write_record
from pyllm.cache.states import StatePool

__all__ = [
    "ROOT",
    "ROOT_DIGEST",
    "CacheFolder",
    "Layout",
    "PagePool",
    "Published",
    "Saved",
    "SavedFile",
    "SavedPage",
    "SavedState",
    "StatePool",
    "digest_of",
    "write_head",
    "write_record",
]
