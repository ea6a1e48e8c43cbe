"""Summaries of jobs, kept in a file: what was moved, how fast, and what was odd."""
