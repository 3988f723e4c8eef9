"""The network, Φ, memory, text and training. Knows no Optuna and none of the other packages."""
