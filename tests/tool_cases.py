"""Parameters of tools as agents have them: files, shells, browsers, calendars, databases, trackers."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
NUMBER: dict[str, Any] = {"type": "number"}
FLAG: dict[str, Any] = {"type": "boolean"}
DAY: dict[str, Any] = {"type": "string", "format": "date"}
TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
EMAIL: dict[str, Any] = {"type": "string", "format": "email"}
MAYBE: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}


def many(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": entry, **more}


def one_of(*values: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def of(required: str = "", *, closed: bool | None = None, **properties: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": required.split()}
    return made if closed is None else {**made, "additionalProperties": not closed}


EDIT = of("old_text new_text", old_text=TEXT, new_text=TEXT, closed=True)
ADDRESS = of("street city", street=TEXT, city=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"}, country=TEXT)
CONDITION: dict[str, Any] = {
    "anyOf": [
        of(
            "field op value",
            field=TEXT,
            op=one_of("=", "<", ">", "in"),
            value={"type": ["string", "number", "boolean"]},
        ),
        of("all", all=many({"$ref": "#/$defs/condition"}, maxItems=3), closed=True),
    ]
}

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": of("city", city=TEXT, unit=one_of("celsius", "fahrenheit")),
    "get_forecast": of("latitude longitude", latitude=NUMBER, longitude=NUMBER, days=whole(1, 14)),
    "calculate": of("expression", expression={"type": "string", "maxLength": 80}),
    "convert_currency": of(
        "amount from to",
        amount={"type": "number", "exclusiveMinimum": 0},
        **{"from": {"type": "string", "pattern": "^[A-Z]{3}$"}, "to": {"type": "string", "pattern": "^[A-Z]{3}$"}},
    ),
    "read_file": of("path", path=TEXT, offset={"type": "integer", "minimum": 0}, limit=whole(1, 2000)),
    "write_file": of("path content", path=TEXT, content=TEXT, closed=True),
    "edit_file": of(
        "path edits", path=TEXT, edits=many(EDIT, minItems=1, maxItems=3), dry_run={**FLAG, "default": False}
    ),
    "list_directory": of("path", path=TEXT, recursive=FLAG, ignore=many(TEXT, maxItems=4)),
    "search_files": of("pattern", pattern=TEXT, glob=MAYBE, case_sensitive=FLAG, max_results=whole(1, 500)),
    "move_file": of("source destination", source=TEXT, destination=TEXT, closed=True),
    "bash": of("command", command=TEXT, timeout=whole(1, 600_000), description=TEXT, run_in_background=FLAG),
    "python": of("code", code=TEXT),
    "git_commit": of("message", message={"type": "string", "minLength": 1}, files=many(TEXT, maxItems=4), amend=FLAG),
    "git_log": of(max_count=whole(1, 100), since=DAY, author=MAYBE),
    "create_issue": of("title", title=TEXT, body=TEXT, labels=many(one_of("bug", "docs", "feature"), maxItems=3)),
    "merge_pull_request": of("number method", number=whole(1, 99999), method=one_of("merge", "squash", "rebase")),
    "web_search": of("query", query={"type": "string", "minLength": 2}, allowed_domains=many(TEXT, maxItems=3)),
    "fetch_url": of("url", url={"type": "string", "format": "uri"}, max_length=whole(100, 100_000), raw=FLAG),
    "browser_click": of("element ref", element=TEXT, ref={"type": "string", "pattern": "^e[0-9]{1,4}$"}, double=FLAG),
    "browser_fill": of(
        "fields", fields=many(of("name type value", name=TEXT, type=one_of("textbox", "checkbox"), value=TEXT))
    ),
    "screenshot": of(full_page=FLAG, format=one_of("png", "jpeg"), quality=whole(0, 100)),
    "send_email": of(
        "to subject body", to=many(EMAIL, minItems=1, maxItems=2), subject=TEXT, body=TEXT, cc=many(EMAIL, maxItems=1)
    ),
    "search_mail": of(query=TEXT, after=DAY, before=DAY, unread=FLAG, limit=whole(1, 50)),
    "create_event": of(
        "title start end", title=TEXT, start=TIME, end=TIME, attendees=many(EMAIL, maxItems=2), location=MAYBE
    ),
    "find_free_time": of(
        "people minutes", people=many(TEXT, minItems=1, maxItems=3), minutes={"enum": [15, 30, 45, 60]}
    ),
    "set_reminder": of("text when", text=TEXT, when={"anyOf": [TIME, of("minutes", minutes=whole(1, 10080))]}),
    "set_timer": of("duration", duration={"type": "string", "format": "duration"}),
    "add_todo": of("task", task=TEXT, priority=whole(1, 4), due={"anyOf": [DAY, {"type": "null"}]}),
    "sql_query": of("query", query=TEXT, parameters=many({"type": ["string", "number", "null"]}, maxItems=3)),
    "filter_rows": {
        **of("table where", table=TEXT, where={"$ref": "#/$defs/condition"}),
        "$defs": {"condition": CONDITION},
    },
    "insert_row": of(
        "table row", table=TEXT, row={"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    ),
    "vector_search": of(
        "collection query",
        collection=TEXT,
        query=TEXT,
        top_k=whole(1, 20),
        min_score={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "create_order": of(
        "items address",
        items=many(of("sku quantity", sku=TEXT, quantity=whole(1, 99)), minItems=1, maxItems=3),
        address=ADDRESS,
    ),
    "track_parcel": of(
        "carrier number",
        carrier=one_of("dhl", "ups", "fedex"),
        number={"type": "string", "pattern": "^[A-Z0-9]{8,20}$"},
    ),
    "book_flight": of(
        "origin destination date",
        origin={"type": "string", "pattern": "^[A-Z]{3}$"},
        destination={"type": "string", "pattern": "^[A-Z]{3}$"},
        date=DAY,
        cabin=one_of("economy", "business"),
        passengers=whole(1, 9),
    ),
    "find_hotels": of(
        "city check_in check_out", city=TEXT, check_in=DAY, check_out=DAY, stars=many({"enum": [3, 4, 5]}, maxItems=3)
    ),
    "get_directions": of("from to", mode=one_of("drive", "walk", "transit"), **{"from": TEXT, "to": TEXT}),
    "play_music": of(track=TEXT, artist=TEXT, volume=whole(0, 11), shuffle=FLAG),
    "set_thermostat": of("room target", room=TEXT, target={"type": "number", "minimum": 5, "maximum": 30}),
    "set_lights": of("on", on=FLAG, color={"type": "string", "pattern": "^#[0-9a-f]{6}$"}, brightness=whole(0, 100)),
    "translate": of("text target", text=TEXT, target={"type": "string", "pattern": "^[a-z]{2}(-[A-Z]{2})?$"}),
    "generate_image": of(
        "prompt",
        prompt=TEXT,
        size=one_of("512x512", "1024x1024"),
        n=whole(1, 4),
        seed={"anyOf": [WHOLE, {"type": "null"}]},
    ),
    "stock_quote": of("symbols", symbols=many({"type": "string", "pattern": "^[A-Z.]{1,6}$"}, minItems=1, maxItems=5)),
    "place_trade": of(
        "side quantity order",
        side={"const": "buy"},
        quantity=whole(1, 1000),
        order={
            "anyOf": [
                of("type", type={"const": "market"}, closed=True),
                of("type limit", type={"const": "limit"}, limit=NUMBER, closed=True),
            ]
        },
    ),
    "lookup_ip": of("ip", ip={"type": "string", "format": "ipv4"}),
    "get_user": of(
        "id", id={"type": "string", "format": "uuid"}, fields=many(one_of("name", "email", "roles"), maxItems=3)
    ),
    "deploy": of(
        "service version",
        service=TEXT,
        version={"type": "string", "pattern": "^v[0-9]+[.][0-9]+[.][0-9]+$"},
        environment={"type": "object", "additionalProperties": TEXT},
    ),
    "scale": of("service replicas", service=TEXT, replicas=whole(0, 50)),
    "read_logs": of("service", service=TEXT, level=one_of("debug", "info", "warning", "error"), tail=whole(1, 1000)),
    "remember": of(
        "facts",
        facts=many(of("subject relation object", subject=TEXT, relation=TEXT, object=TEXT, closed=True), maxItems=2),
    ),
    "think": of("thought", thought=TEXT, next_needed=FLAG, number={"type": "integer", "minimum": 1}),
    "render_tree": {
        **of("root", root={"$ref": "#/$defs/node"}),
        "$defs": {"node": of("tag", tag=one_of("div", "span"), children=many({"$ref": "#/$defs/node"}, maxItems=2))},
    },
    "now": of(),
}
"""JSON schemas of parameters, by the tool's name."""
