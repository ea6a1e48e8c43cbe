"""Summaries of jobs, kept in one file."""
