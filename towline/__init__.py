"""Towline: follow a long-running job to its true end."""
