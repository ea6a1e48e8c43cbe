"""Frames that go out by UCX. All of this needs the worker's lock."""
