"""Studies from elsewhere: copies from another database, tables of past experiments."""
