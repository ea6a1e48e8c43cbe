"""What the processes of a cluster tell of their comms, brought together and shown."""
