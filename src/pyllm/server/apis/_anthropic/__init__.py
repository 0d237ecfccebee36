"""Parts of Anthropic's API."""
