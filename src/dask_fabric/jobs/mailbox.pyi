"""A mailbox: where native threads put the ends of jobs, for one event loop to collect."""
