"""Counters of comms, of a process and of a cluster: collected, shown and recorded."""
