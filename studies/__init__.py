"""Study files that come with the program: data, not code."""
