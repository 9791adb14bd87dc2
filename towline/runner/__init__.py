"""Runs a lifecycle: steps that any thread may add, and timers with tickets.

It knows tables and the event loop, but no socket, no job and no store.
"""
