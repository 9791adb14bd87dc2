"""The explicit lifecycle of a connection: pure data and pure functions."""
