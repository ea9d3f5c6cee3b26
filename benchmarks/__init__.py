"""Time and memory of attention against peers, in one run on one machine."""
