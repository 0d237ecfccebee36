"""A conversation in the terminal: python examples/chat.py [MODEL]

The model sees the whole history each time; what it has read before is not computed again. Where the history fills the
context, its oldest turns are left out.
"""

import sys

import pyllm

model = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder:0.5b"
history: list[dict[str, str]] = [{"role": "system", "content": "Answer in one sentence."}]

with pyllm.load(model) as llm:
    for line in sys.stdin:
        history.append({"role": "user", "content": line.strip()})
        with llm.chat(history, max_tokens=128, temperature=0, truncate="oldest", stream=True) as answer:
            for piece in answer:
                print(piece, end="", flush=True)
            print()
        history.append(answer.result.message)
