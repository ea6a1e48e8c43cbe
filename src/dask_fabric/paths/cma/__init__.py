"""Cross memory attach: within a host, the receiver reads frames from the sender's memory."""
