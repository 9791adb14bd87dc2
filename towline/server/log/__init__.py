"""The hub's log of events: what every log must do, and the logs on SQLite and Redis.

It knows no HTTP and no job function.
"""
