"""The network: transformer, Φ, memory, loss, and networks of a user's own."""
