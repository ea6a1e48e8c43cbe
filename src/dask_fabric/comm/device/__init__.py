"""GPU memory: sent from device to device, or staged in host memory."""
