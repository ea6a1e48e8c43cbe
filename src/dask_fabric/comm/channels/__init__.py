"""Making channels over a socket or TLS, and negotiating their paths."""
