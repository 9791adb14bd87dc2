"""The commands that start and follow a job, their options, and what they show; no command of another kind.

Other commands may use its options, its views and its output files.
"""
