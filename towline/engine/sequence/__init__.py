"""The order of a job's facts, without I/O: what comes next, what is a duplicate, what is missing, and the end.

It knows facts and updates, but no source, no state machine and no store.
"""
