"""Workers for GPUs: finding GPUs and the devices near them, and one worker in each GPU's seat."""
