"""Byte streams: dialling, TLS, proxies, and reads and writes with deadlines.

It does not know HTTP or WebSocket, except for what a proxy needs.
"""
