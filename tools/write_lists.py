"""Writes the architectures that pyllm knows into the documents that list them.

    python tools/write_lists.py

Run it after adding one; tests compare.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from pyllm import archs

_ROOT = Path(__file__).parents[1]


def files() -> dict[Path, str]:
    """The documents by path, as they should be."""
    names = ", ".join(archs.names())
    listed = textwrap.fill(
        f"- Architectures: {names}.", 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
    readme, models = _ROOT / "README.md", _ROOT / "docs" / "models.md"
    return {
        readme: re.sub(r"^- Architectures: .*?\.$", listed, readme.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE),
        models: re.sub(r"(and these architectures: ).*?\.\n", rf"\g<1>{names}.\n", models.read_text("utf-8")),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, "utf-8")
