"""Large frames between hosts, in parts over several connections."""
