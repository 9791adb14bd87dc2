"""Commands for tables: pictures and comparisons, the replay of a recorded run, the explorer. No connection."""
