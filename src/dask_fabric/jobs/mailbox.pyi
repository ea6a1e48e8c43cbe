"""A mailbox: native threads post completions to it, and one event loop collects them."""
