"""Parts of llama-server's own API."""
