"""The WebSocket: handshake, frames and compression without I/O, and the client that runs them.

It knows streams from `net`, but no job and no message format.
"""
