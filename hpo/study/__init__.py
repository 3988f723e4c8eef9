"""Study files, and what they mean to Optuna."""
