"""What takes long: chaos campaigns, benchmarks, GPUs, whole corpora."""
