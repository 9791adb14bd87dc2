"""A proxy that breaks real sockets: it delays, cuts and holds bytes, and changes the order of messages.

It knows no job: what a message means is not looked at.
"""
