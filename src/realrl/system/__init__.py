"""Files, memory, hardware, the hub and the operating system."""
