"""JSON schemas to hold answers to: random ones by seed, and those of tools as agents have them."""

from __future__ import annotations

import random
import re
from datetime import date
from typing import Any

import jsonschema

PATTERNS = [
    "^[a-z]{2,8}$",
    "^[A-Z][a-z]+(-[0-9]{1,3})?$",
    r"^\d{3}-\d{4}$",
    "^(red|green|blue)$",
    "foo",
    r"^\w+@\w+\.com$",
]
FORMATS = ["date", "time", "date-time", "email", "ipv4", "uuid", "hostname", "duration"]
NAMES = ["name", "id", "kind", "value", "größe", "a b", "x-y", 'quo"te', "tags", "next", "unit", "$ref_", "0"]


class Maker:
    """Makes random schemas; each is satisfiable, and within what is held."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.definitions: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        made = self.random.choice([self.object, self.object, self.object, self.array, self.any_of])(3)
        return {**made, "$defs": self.definitions} if self.definitions else made

    def any(self, depth: int) -> dict[str, Any]:
        kinds = [self.string, self.number, self.integer, self.enum, self.const, self.plain, self.nullable]
        if depth:
            kinds += [self.object, self.array, self.any_of, self.reference, self.recursive, self.fixed]
        return self.random.choice(kinds)(depth - 1)

    def plain(self, depth: int) -> dict[str, Any]:
        return {"type": self.random.choice(["string", "integer", "number", "boolean", "null"]), "description": "x"}

    def nullable(self, depth: int) -> dict[str, Any]:
        return {"type": [self.random.choice(["string", "integer", "boolean"]), "null"]}

    def string(self, depth: int) -> dict[str, Any]:
        r = self.random
        least = r.randrange(4)
        return r.choice(
            [
                {"type": "string", "minLength": least, "maxLength": least + r.randrange(12)},
                {"type": "string", "pattern": r.choice(PATTERNS)},
                {"type": "string", "format": r.choice(FORMATS)},
                {"type": "string", "maxLength": 20},
            ]
        )

    def number(self, depth: int) -> dict[str, Any]:
        r = self.random
        low = r.choice([-1000, -1, 0, 0.5, 3.25])
        return {
            "type": "number",
            r.choice(["minimum", "exclusiveMinimum"]): low,
            r.choice(["maximum", "exclusiveMaximum"]): low + r.choice([1, 10.5, 12345]),
        }

    def integer(self, depth: int) -> dict[str, Any]:
        r = self.random
        low = r.randrange(-50, 50)
        made: dict[str, Any] = {"type": "integer", "minimum": low}
        if r.random() < 0.7:
            made["maximum"] = low + r.randrange(1, 500)
        elif r.random() < 0.5:
            made = {"type": "integer", "multipleOf": r.choice([2, 5, 7])}
        return made

    def value(self, depth: int) -> Any:
        r = self.random
        plain = ["x", 'ä\n"\\', "", 0, -3, 2.5, True, False, None]
        return r.choice([*plain, [1, "a"], {"k": r.choice(plain)}, [], {}])

    def enum(self, depth: int) -> dict[str, Any]:
        return {"enum": [self.value(depth) for _ in range(self.random.randrange(1, 6))]}

    def const(self, depth: int) -> dict[str, Any]:
        return {"const": self.value(depth)}

    def object(self, depth: int) -> dict[str, Any]:
        r = self.random
        names = r.sample(NAMES, r.randrange(5))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth) for name in names}}
        made["required"] = [name for name in names if r.random() < 0.5]
        more = r.random()
        if more < 0.3:
            made["additionalProperties"] = False
        elif more < 0.4:
            made["additionalProperties"] = self.any(0)
        elif more < 0.5:
            made["additionalProperties"] = True
        return made

    def array(self, depth: int) -> dict[str, Any]:
        r = self.random
        least = r.randrange(3)
        return {"type": "array", "items": self.any(depth), "minItems": least, "maxItems": least + r.randrange(4)}

    def fixed(self, depth: int) -> dict[str, Any]:
        entries = [self.any(depth) for _ in range(self.random.randrange(1, 4))]
        return {"type": "array", "prefixItems": entries, "items": False, "minItems": len(entries)}

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.any(depth) for _ in range(self.random.randrange(1, 4))]}

    def reference(self, depth: int) -> dict[str, Any]:
        name = f"d{self.random.randrange(3)}"
        if name not in self.definitions:
            self.definitions[name] = self.any(0)
        return {"$ref": f"#/$defs/{name}"}

    def recursive(self, depth: int) -> dict[str, Any]:
        name = f"tree{len(self.definitions)}"
        self.definitions[name] = {
            "type": "object",
            "properties": {"value": self.any(0), "children": {"type": "array", "items": {"$ref": f"#/$defs/{name}"}}},
            "required": ["value"],
        }
        return {"$ref": f"#/$defs/{name}"}


def random_schema(seed: int) -> dict[str, Any]:
    return Maker(seed).schema()


def format_checker() -> jsonschema.FormatChecker:
    """Checks formats as their standards have them: `jsonschema` refuses the leap seconds of RFC 3339, where it can."""
    checker = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
    time = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"

    @checker.checks("time")
    def is_time(value: object) -> bool:
        return not isinstance(value, str) or re.fullmatch(time, value, re.IGNORECASE | re.ASCII) is not None

    @checker.checks("date-time", raises=ValueError)
    def is_date_time(value: object) -> bool:
        if not isinstance(value, str):
            return True
        day, clock = value[:10], value[11:]
        return value[10:11] in ("T", "t", " ") and date.fromisoformat(day) is not None and is_time(clock)

    return checker
