"""What the records tell: verdicts, insights, totals."""
