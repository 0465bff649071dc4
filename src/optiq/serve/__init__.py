"""The engine that answers many requests at once, and what reads its replies; protocols come in on top."""
