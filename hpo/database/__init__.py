"""The studies' database: URL, connection, tables, retries, and Optuna's private names."""
