"""The network, Φ, memory, text and training. Knows no Optuna and none of the other packages.

From the top down; a folder imports only what is below it:

    generation   text from a trained network, its quality, its export
    training     the loop, evaluations, checkpoints, conformance checks
    network      transformer, Φ, memory, loss, networks of a user's own
    data         corpora, tokenizers, token files, batches
"""
