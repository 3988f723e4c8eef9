"""Who starts workers. Every executor calls the same `hpo.worker.work`."""
