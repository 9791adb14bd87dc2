"""What reaches the program and the store: iterations, handlers, the journal, and the publisher that feeds them.

It knows updates and positions, but no source and no protocol.
"""
