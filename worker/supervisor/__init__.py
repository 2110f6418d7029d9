"""One worker process for each device of a machine: started, restarted, replaced and stopped by a small parent."""
