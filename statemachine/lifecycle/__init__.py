"""The lifecycle of a connection: its states, events, cells, snapshot, effects and step.

The folder above works for any table and imports nothing from here but to export it.
"""
