"""The driver of one connection: it turns the lifecycle's effects into work, and results into events.

Only `_connection.py` imports it. It knows no command line, no host and no test tool.
"""
