"""Optuna's dashboard, served with our notes and figures."""
