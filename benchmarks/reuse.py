"""Prompt tokens that servers compute again in chats whose template drops earlier reasoning, and what they wait for it.

    python benchmarks/recurrent_shapes.py MODEL.gguf --shape qwen35-0.8b --vocabulary N
    python benchmarks/reuse.py MODEL.gguf --vocabulary-of FILE.gguf --template T.jinja [--llama-server PATH]

The model's weights may be random: what it answers counts for nothing, since each next request holds a fixed answer
without reasoning in its place. FILE gives the vocabulary, of as many tokens. `pyllm serve` and llama-server get the
same requests: a chat of ten turns; two users in turn behind one system prompt; a chat that goes back to its fifth turn.
Printed by server: prompt tokens in all, those that were computed, and the median time to the first token.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllm.gguf import GGUFWriter, TensorSpec, Value, copy_metadata, open_gguf
from pyllm.jit.processors import default_threads
from servers import Server, pyllm_command, running

Chat = list[dict[str, str]]
_N_CTX = 16384
_N_TOKENS = 48
_WORDS = ["river", "stone", "because", "morning", "who", "never", "walked", "between", "houses", "told", "seven"]


@dataclass(frozen=True)
class Seen:
    """One request: tokens of its prompt, how many of them were not computed, and seconds to the first token."""

    n_prompt: int
    n_cached: int
    wait: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vocabulary-of", type=Path, required=True, metavar="FILE")
    parser.add_argument("--template", type=Path, required=True, metavar="FILE")
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("--threads", type=int, default=default_threads())
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = with_vocabulary(a.model, a.vocabulary_of, a.template.read_text("utf-8"), Path(folder) / "chat.gguf")
        threads, context = str(a.threads), str(_N_CTX)
        commands = {"pyllm": pyllm_command([str(model)], "--threads", threads, "--ctx", context)}
        if a.llama_server:
            commands["llama-server"] = [
                a.llama_server, "-m", str(model), "-t", threads, "-c", context, "--jinja", "--no-webui",
            ]  # fmt: skip
        print(f"{'':14} {'':14} {'prompts':>8} {'computed':>9} {'first token':>12}")
        for title, requests in scenarios().items():
            for name, command in commands.items():
                with running(name, command) as server:
                    seen = [ask(server, chat) for chat in requests]
                total = sum(s.n_prompt for s in seen)
                computed = total - sum(s.n_cached for s in seen)
                wait = statistics.median(s.wait for s in seen)
                print(f"{title:14} {name:14} {total:8} {computed:9} {wait * 1000:9.0f} ms", flush=True)


def with_vocabulary(model: Path, source: Path, template: str, out: Path) -> Path:
    """The model with another file's vocabulary and a template."""
    with open_gguf(model) as file, open_gguf(source) as donor:
        values = {k: v for k, v in copy_metadata(file.metadata).items() if not k.startswith("tokenizer.")}
        values |= {k: v for k, v in copy_metadata(donor.metadata).items() if k.startswith("tokenizer.")}
        values["tokenizer.chat_template"] = Value.of(template)
        specs = [TensorSpec(t.name, t.shape, t.format) for t in file.tensors.values()]
        with GGUFWriter(out, values, specs, sources=[model, source]) as writer:
            for tensor in file.tensors.values():
                writer.write(tensor.data)
    return out


def scenarios() -> dict[str, list[Chat]]:
    """Requests in order, by what they show."""
    system, rng = text(random.Random(0), 600), random.Random(1)
    ten = turns(system, rng, 10)
    first, second = turns(system, rng, 5), turns(system, rng, 5)
    branch = turns(system, rng, 8)
    back = [*branch[4][:-1], {"role": "user", "content": text(rng, 80)}]
    return {
        "ten turns": ten,
        "two users": [chat for both in zip(first, second, strict=True) for chat in both],
        "a branch": [*branch, back],
    }


def turns(system: str, rng: random.Random, n: int) -> list[Chat]:
    """The requests of a chat of n turns."""
    history: Chat = [{"role": "system", "content": system}]
    out = []
    for _ in range(n):
        history = [*history, {"role": "user", "content": text(rng, 80)}]
        out.append(history)
        history = [*history, {"role": "assistant", "content": text(rng, 120)}]
    return out


def text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(_WORDS, k=n))


def ask(server: Server, chat: Chat) -> Seen:
    """Send a request and read its answer to the end."""
    body = {
        "model": "chat",
        "messages": chat,
        "max_tokens": _N_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, wait, usage = time.perf_counter(), 0.0, None
    for chunk in events(server.port, body):
        if not wait and any(choice["delta"].get(key) for choice in chunk["choices"] for key in _TEXTS):
            wait = time.perf_counter() - began
        usage = chunk.get("usage") or usage
    assert usage is not None, "the answer has no usage"
    return Seen(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], wait)


_TEXTS = ("content", "reasoning_content")


def events(port: int, body: Any) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {answer.read()[:2000].decode(errors='replace')}")
        for line in answer:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                yield json.loads(line[6:])
    finally:
        connection.close()


if __name__ == "__main__":
    main()
