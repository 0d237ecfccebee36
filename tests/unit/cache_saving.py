"""A process that loads a file of the prefix cache, or saves one where there is none: MODEL FILE [again]."""

from __future__ import annotations

import os
import sys

import pyllm


def main() -> None:
    model, file, *again = sys.argv[1:]
    with pyllm.load(model, backend="reference", n_ctx=256, max_seqs=4) as llm:
        prompt = [(7 * i) % llm.n_vocab for i in range(101)]
        if os.path.exists(file):
            print("loaded", llm.load_cache(file).n_pages, flush=True)
        else:
            llm.complete(prompt, max_tokens=1)
            print("saved", llm.save_cache(file).n_pages, flush=True)
        while again:
            llm.save_cache(file)


if __name__ == "__main__":
    main()
