"""Several prompts side by side, much faster than one after another: python examples/batch.py [MODEL]"""

import sys

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"
countries = ["France", "Japan", "Egypt", "Peru"]

with pyllm.load(model, max_seqs=len(countries)) as llm:
    prompts = [f"The capital of {country} is" for country in countries]  # "The capital of" is computed once
    for country, result in zip(countries, llm.generate(prompts, max_tokens=6, temperature=0, stop="."), strict=True):
        print(f"{country}: {result.text.strip()}")
