"""Twenty questions for a model with three tools: how many right calls it makes, and whether forced ones are valid.

    python benchmarks/tool_calls.py qwen2.5-coder:1.5b

A call is right where it is the tool expected, and the expected texts are in its arguments; an expression must have the
expected value. Greedy, so that a run can be repeated. The second line of each question is with tool_choice="required".
"""

from __future__ import annotations

import argparse
import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pyllm

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city now or on a day of this week.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city"},
                    "day": {"type": "string", "description": "A day of the week, or today"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "The value of an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "Such as 3 * (4 + 5)"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "find_files",
            "description": "Names of the files in a folder that match a pattern.",
            "parameters": {
                "type": "object",
                "properties": {
                    "folder": {"type": "string", "description": "The folder to look in"},
                    "pattern": {"type": "string", "description": "A pattern such as *.txt"},
                },
                "required": ["folder", "pattern"],
            },
        },
    },
]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
QUESTIONS: list[tuple[str, str, dict[str, str]]] = [
    ("What's the weather in Paris?", "get_weather", {"city": "Paris"}),
    ("Will it rain in Tokyo on Friday?", "get_weather", {"city": "Tokyo", "day": "Friday"}),
    ("How warm is it in New York today?", "get_weather", {"city": "New York"}),
    ("Do I need an umbrella in London?", "get_weather", {"city": "London"}),
    ("Is it snowing in Oslo?", "get_weather", {"city": "Oslo"}),
    ("Tell me the weather for Monday in São Paulo.", "get_weather", {"city": "Paulo", "day": "Monday"}),
    ("What is the temperature in Cairo right now?", "get_weather", {"city": "Cairo"}),
    ("What is 17 * 23?", "calculate", {"expression": "391"}),
    ("Compute (12 + 30) / 7.", "calculate", {"expression": "6"}),
    ("How much is 15 percent of 240?", "calculate", {"expression": "36"}),
    ("What is 2 to the power of 20?", "calculate", {"expression": "1048576"}),
    ("Add 1.5, 2.25 and 3.75.", "calculate", {"expression": "7.5"}),
    ("Divide 1001 by 13.", "calculate", {"expression": "77"}),
    ("What is 999 minus 123?", "calculate", {"expression": "876"}),
    ("Find all Python files in the folder src.", "find_files", {"folder": "src", "pattern": "*.py"}),
    ("Which text files are in /tmp?", "find_files", {"folder": "/tmp", "pattern": "*.txt"}),
    ("List the images with the ending png in the folder photos.", "find_files", {"folder": "photos", "pattern": "png"}),
    ("Search /var/log for files that end with .log.", "find_files", {"folder": "/var/log", "pattern": ".log"}),
    ("Are there PDF files in Documents?", "find_files", {"folder": "Documents", "pattern": "pdf"}),
    (
        "Show me every file in data whose name begins with report.",
        "find_files",
        {"folder": "data", "pattern": "report"},
    ),
]


def is_right(calls: tuple[Any, ...], name: str, arguments: Mapping[str, str]) -> bool:
    if len(calls) != 1 or calls[0].name != name:
        return False
    if name == "calculate":
        found = value_of(str(calls[0].arguments.get("expression", "")).replace("^", "**"))
        return found is not None and abs(found - float(arguments["expression"])) < 1e-9
    return all(wanted.lower() in str(calls[0].arguments.get(key, "")).lower() for key, wanted in arguments.items())


def value_of(expression: str) -> float | None:
    """Value of an arithmetic expression; None where it is none."""

    def of(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return float(OPERATORS[type(node.op)](of(node.left), of(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -of(node.operand)
        raise ValueError(expression)

    try:
        return of(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        return None


def is_valid(call: Any) -> bool:
    """A call of one of the tools, with the arguments that its schema admits."""
    schema = PARAMETERS.get(call.name)
    return (
        schema is not None
        and set(schema["required"]) <= set(call.arguments) <= set(schema["properties"])
        and all(isinstance(value, str) for value in call.arguments.values())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int)
    a = parser.parse_args()
    more = {} if a.threads is None else {"n_threads": a.threads}
    right, required_right, valid = 0, 0, 0
    with pyllm.load(a.model, n_ctx=4096, **more) as llm:
        for question, name, arguments in QUESTIONS:
            answers = [
                llm.chat(question, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=200)
                for choice in ("auto", "required")
            ]
            right += is_right(answers[0].tool_calls, name, arguments)
            required_right += is_right(answers[1].tool_calls, name, arguments)
            valid += bool(answers[1].tool_calls) and all(map(is_valid, answers[1].tool_calls))
            shown = [
                ", ".join(f"{c.name}({c.arguments})" for c in answer.tool_calls) or repr(answer.text[:80])
                for answer in answers
            ]
            print(f"{question}\n    {shown[0]}\n    {shown[1]}", flush=True)
    n = len(QUESTIONS)
    print(f"right calls: {right} of {n}; tool_choice=required: {required_right} right, {valid} of {n} valid")


if __name__ == "__main__":
    main()
