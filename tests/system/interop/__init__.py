"""The engine against other people's servers and proxies: what they are, the scenes, and the table of what was seen."""
