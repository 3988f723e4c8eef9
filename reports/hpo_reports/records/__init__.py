"""An Optuna study as frozen records."""
