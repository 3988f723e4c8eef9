"""What is done with a trained network: find, evaluate, generate, export."""
