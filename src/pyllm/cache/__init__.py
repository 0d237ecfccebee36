"""The pools of KV pages and of slots for recurrent states, with prefix sharing between sequences; pages in files."""

from pyllm.cache.folder import CacheFolder
from pyllm.cache.pool import ROOT, ROOT_DIGEST, PagePool, Published, digest_of
from pyllm.cache.saved import Layout, SavedFile, SavedPage, write_head, write_page
from pyllm.cache.states import StatePool

__all__ = [
    "ROOT",
    "ROOT_DIGEST",
    "CacheFolder",
    "Layout",
    "PagePool",
    "Published",
    "SavedFile",
    "SavedPage",
    "StatePool",
    "digest_of",
    "write_head",
    "write_page",
]
