"""Parts of Ollama's API."""
