"""From what a user asked for to a study that has run: request, checks, workers, finalists, test split."""
