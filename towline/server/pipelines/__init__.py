"""The job functions that come with the hub, and the shapes of their results.

The hub itself works without them.
"""
