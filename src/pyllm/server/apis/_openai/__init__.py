"""OpenAI's API in parts: a file per route, and the forms that they share."""
