"""The network path: whether there is a route to the server, and which, on each operating system.

It reports; what a report means to a connection is decided elsewhere.
"""
