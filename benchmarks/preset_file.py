"""A preset of `pyllm bench` as a file, perhaps with fewer layers, to compare speeds with other programs.

python benchmarks/preset_file.py OUT.gguf --preset deepseek-v2-lite [--layers 4] [--recipe Q4_K_M]
python benchmarks/versus_llamacpp.py --model OUT.gguf --only-speed
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pyllm.bench.presets import DEFAULT_RECIPE, PRESETS, metadata_of, shapes_of
from random_file import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE)
    a = parser.parse_args()
    preset = PRESETS[a.preset]
    preset = replace(preset, n_layers=a.layers or preset.n_layers)
    write(a.out, metadata_of(a.preset, preset), shapes_of(preset), a.recipe)


if __name__ == "__main__":
    main()
