"""Reports of a cluster's processes on their comms: tables, matrices and rates."""
