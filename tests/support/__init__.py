"""What tests share: toy studies, databases, processes, faults."""
