"""What makes training fast and safe: compiling, several processes, checkpoint files, counters."""
