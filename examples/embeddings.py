"""Which text is closest in meaning to a question: python examples/embeddings.py [MODEL]

A language model's embeddings are rougher than those of a model that was trained for them, and do for a first look.
"""

import sys

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"
question = "How do I sort a list in Python?"
texts = [
    "Use sorted(values), or values.sort() to sort in place.",
    "Bake the bread for forty minutes at 220 degrees.",
    "The river Seine flows through Paris.",
]

with pyllm.load(model) as llm:
    vectors = llm.embed(texts)  # [3, n_embd], each of length 1
    likeness = vectors @ llm.embed(question)  # so that products are cosines

for score, text in sorted(zip(likeness.tolist(), texts, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
