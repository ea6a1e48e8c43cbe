"""Workloads of whole clusters, with checks of their results."""
