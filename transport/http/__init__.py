"""One HTTP exchange without I/O, and the client that runs it.

It knows streams from `net`, but no job and no message format.
"""
