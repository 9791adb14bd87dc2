"""The key providers: where the key that seals the store comes from.

No record is read or written here.
"""
