"""What reaches the program and the store: iterations, handlers, the journal, and who is told what.

It knows updates and positions, but no source and no protocol.
"""
