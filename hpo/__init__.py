"""The search: study files, slots and leases, workers, the command line.

From the top down; a folder imports only what is below it:

    cli, commands   what a user types
    search          one call of a command: prepare a study, launch workers, run finalists, evaluate the winner
    executors       who starts workers, and how many: this machine, Ray, Slurm
    long_run        `hpo train`
    transfer        studies from elsewhere: copies, tables of past experiments
    monitor         how far a study is, for a terminal, a script, a webhook
    dashboard       notes and figures in Optuna's dashboard, and its server
    worker          one process: claim a slot, train its trial, finish
    inference       what is done with a trained network
    sweep           a study in its database: its record, slots and leases, checkpoints, finalists
    study           a study file, validated, and what it means to Optuna
    database        connection, our tables, retries, Optuna's private names
"""
