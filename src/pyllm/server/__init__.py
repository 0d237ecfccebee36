"""The server: models behind OpenAI's, Ollama's, Anthropic's and llama-server's APIs, and a chat page.

`create_app(make_house(ServeOptions()))` is an ASGI application; `pyllm serve` runs it.
"""

from __future__ import annotations

from pyllm.config.serving import ServeOptions
from pyllm.server.app import create_app
from pyllm.server.house import House, make_house

__all__ = ["House", "ServeOptions", "create_app", "make_house"]
