"""Adapters for other people's loops, one file for each host; nothing here is imported by the rest of the package."""
