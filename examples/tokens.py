"""Tokens of a text, without loading the model's weights: python examples/tokens.py [MODEL] [TEXT]"""

import sys

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"
text = sys.argv[2] if len(sys.argv) > 2 else "Hello, wörld!"

tokenizer = pyllm.load_tokenizer(model)
ids = tokenizer.encode(text, add_special=False)
for token in ids:
    print(f"{token:7}  {tokenizer.token_bytes(token)!r}")
print(f"{len(ids)} tokens of {tokenizer.n_vocab}")
assert tokenizer.decode(ids) == text
