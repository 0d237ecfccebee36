"""OpenAI's Responses in parts: what is given, what is answered, and the events of a stream."""
