"""The messages of Towline's own wire: their structs, the codec that reads them, and its lenient reader.

The hub writes with these structs, the protocols read with the codec. Nothing here makes updates or facts, opens a
connection, reads a clock or draws a random number.
"""
