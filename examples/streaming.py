"""An answer as it comes, and what it took: python examples/streaming.py [MODEL]"""

import sys

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"

with pyllm.load(model) as llm, llm.chat("Count from one to five.", max_tokens=64, seed=1, stream=True) as answer:
    for piece in answer:
        print(piece, end="", flush=True)
    result = answer.result  # leaving the loop early is fine, too: `result` then reads the rest

print(f"\n{result.usage.n_generated} tokens, ended by {result.finish_reason}")
