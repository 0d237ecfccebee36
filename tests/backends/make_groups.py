"""Write `groups/NAME.txt` of each model in `tests/golden/archs` anew.

    PYTHONPATH=tests python tests/backends/make_groups.py

Read what changed before it is kept: a line is what a backend that can fuse everything computes at once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from test_plan import ARCHS, GROUPS, Everything, schedule, told

from arch_models import ArchModel
from pyllm import archs
from pyllm.gguf import open_gguf


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ARCHS:
            with open_gguf(ArchModel.load(name).write(Path(folder) / f"{name}.gguf")) as file:
                program = archs.load(file.metadata, file.tensors, 256).program
            lines = [told(group) for group in schedule(program, Everything())[2]]
            (GROUPS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
