"""The hub's HTTP side: routes, sockets, uploads, access, the page.

The state of a job is decided elsewhere.
"""
