"""Byte streams: dialling, TLS, proxies, and reads and writes with deadlines.

It knows neither HTTP nor WebSocket, except for what a proxy needs.
"""
