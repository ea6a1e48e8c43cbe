"""Workloads: what whole clusters do, and whether the results are right."""
