"""What the processes of a cluster report of their comms: tables, matrices and rates."""
