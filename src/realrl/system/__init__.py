"""What the project asks of the machine: files, memory, hardware, the hub, the operating system."""
