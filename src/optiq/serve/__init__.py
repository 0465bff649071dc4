"""The engine that answers many requests at once, what reads its replies, and the server on top; protocols in `http/`."""
