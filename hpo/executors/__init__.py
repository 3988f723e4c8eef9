"""Who starts workers, and where. Every executor calls the same `hpo.worker.worker.work`."""
