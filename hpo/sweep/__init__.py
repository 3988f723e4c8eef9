"""An Optuna study with its slots and leases, its finalists, and the checks before it goes on."""
