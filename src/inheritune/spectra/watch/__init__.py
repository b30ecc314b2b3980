"""Watching a model compute its attention: its attention interface, hooks, or block by block."""
