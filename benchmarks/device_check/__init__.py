"""What a device makes of attention: its laws, memory, training and speed, in one command."""
