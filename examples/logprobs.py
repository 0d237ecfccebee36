"""How sure a model is: of each token that it writes, and of a text. python examples/logprobs.py [MODEL]"""

import math
import sys

import numpy as np

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"

with pyllm.load(model) as llm:
    result = llm.complete("The capital of France is", max_tokens=4, temperature=0, logprobs=2)
    for token in result.logprobs or ():
        others = ", ".join(f"{text!r} {math.exp(logprob):.1%}" for _, text, logprob in token.top)
        print(f"{token.text!r} {math.exp(token.logprob):.1%}   of {others}")

    ids = llm.tokenizer.encode("Paris is the capital of France, and Berlin is the capital of Germany.")
    logits = llm.logits(ids).astype(np.float64)  # [n_tokens, n_vocab]; row i predicts token i + 1
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    print(f"perplexity {math.exp(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean()):.2f}")
