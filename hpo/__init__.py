"""The search: study files, storage, slots and leases, workers, the command line."""
