"""What the protocols share: reading JSON and placing tokens, their names, what a store keeps of them, and recordings.

Nothing here knows one server, except for its name and class. A protocol stands next to this folder, never in it.
"""
