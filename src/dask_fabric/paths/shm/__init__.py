"""Shared memory: frames in memory files, which processes of a host map."""
