"""Memory of GPUs: from device to device, or by way of host memory."""
