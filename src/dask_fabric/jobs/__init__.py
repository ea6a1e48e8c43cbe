"""Work of native threads: mailboxes, completion queues, and quarantine for stuck memory."""
