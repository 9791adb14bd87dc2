"""The hub's HTTP calls, by what they serve: what a request may do is decided here, and answered. No work of the hub."""
