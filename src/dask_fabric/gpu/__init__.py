"""Workers for GPUs: which GPUs there are, what lies near them, and a worker in each one's seat."""
