"""Plain questions to look at the answers: does a model that pyllm runs make sense?

    python benchmarks/questions.py smollm2:135m
    python benchmarks/questions.py qwen2.5-coder:1.5b --code

Greedy, so that a run can be repeated.
"""

from __future__ import annotations

import argparse

import pyllm

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "What do bees make?",
    "How many days are there in a week?",
    "What is the opposite of hot?",
    "Why do people wear coats in winter?",
    "Write one sentence about a dog.",
    "What is water made of?",
    "Which animal says meow?",
    "Give me a simple recipe for toast.",
)
FUNCTIONS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Python function that tells whether a string is a palindrome, ignoring case and spaces.",
    "Write a Python function that counts how often each word occurs in a text.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pyllm knows")
    parser.add_argument("--code", action="store_true", help="ask for small Python functions instead")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("-n", "--max-tokens", type=int, default=256)
    a = parser.parse_args()
    with pyllm.load(a.model, backend=a.backend) as llm:
        for question in FUNCTIONS if a.code else QUESTIONS:
            print(f"## {question}\n")
            stream = llm.chat(question, stream=True, max_tokens=a.max_tokens, temperature=0)
            for piece in stream:
                print(piece, end="", flush=True)
            result = stream.result
            print(f"\n\n({result.usage.n_generated} tokens, {result.usage.rate:.0f}/s, {result.finish_reason})\n")


if __name__ == "__main__":
    main()
