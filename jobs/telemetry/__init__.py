"""What a process says of itself: its log, counters, metrics over HTTP, and traces."""
