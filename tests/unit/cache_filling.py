"""A process that fills a folder of saved pages until it is killed: FOLDER SIZE SEED [ROUNDS]."""

from __future__ import annotations

import sys
from pathlib import Path

from cache_tools import LAYOUT, sequence

from pyllm.cache import CacheFolder


def main() -> None:
    folder, size, seed, *rounds = sys.argv[1:]
    kept = CacheFolder(Path(folder), int(size), LAYOUT)
    print("begun", flush=True)
    n = 0
    while not rounds or n < int(rounds[0]):
        kept.write(sequence(1000 * int(seed) + n, 5))
        n += 1


if __name__ == "__main__":
    main()
