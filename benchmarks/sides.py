"""What both sides of a comparison share: their commands and flags. Needs nothing but Python."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

_POSITIONAL = {
    "speed": (),
    "first": (),
    "perplexity": ("text",),
    "logits": ("tokens", "out"),
    "tokenize": ("text",),
    "quantize": ("out", "recipe"),
    "divergence": ("text", "base"),
}


def main(description: str | None, commands: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]]) -> None:
    """Run the command that the arguments name, and print what it returns as one line of JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_subparsers(dest="command", required=True)
    for name in commands:
        command = chosen.add_parser(name)
        for argument in ("model", *_POSITIONAL[name]):
            command.add_argument(argument)
        if name == "first":
            command.add_argument("-p", dest="prompt", default="The capital of France is")
        else:
            command.add_argument("-p", type=int, default=512)
        for flag, default in (("-t", 2), ("-n", 64), ("-r", 3), ("-c", 512), ("--parallel", 16), ("--windows", 20)):
            command.add_argument(flag, type=int, default=default)
        if name == "quantize":
            command.add_argument("--imatrix", help="a GGUF imatrix file")
            command.add_argument("--pure", action="store_true", help="every matrix in the recipe's own format")
        if name == "divergence":
            command.add_argument("--write", action="store_true", help="write the base, of this model")
        command.add_argument("--backend", default="cpu", help="pyllm's; llama.cpp runs on what it was built for")
    arguments = parser.parse_args()
    print(json.dumps(commands[arguments.command](arguments)))


def peak_bytes() -> int:
    """Most memory that this process has held so far, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
