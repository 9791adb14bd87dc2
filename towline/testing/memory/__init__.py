"""A network in memory and a scripted server on it, for programs under virtual time.

Nothing here opens a real socket.
"""
