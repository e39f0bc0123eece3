"""The machine: devices, threads, several processes."""
