"""The full training run with a chosen configuration: `hpo train`."""
