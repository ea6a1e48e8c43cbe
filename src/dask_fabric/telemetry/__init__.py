"""What is counted, shown and kept of the comms of a process and of a cluster."""
