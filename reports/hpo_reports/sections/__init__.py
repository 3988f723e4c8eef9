"""The sections of the reports, a file each: findings in, blocks of Markdown out. Sentences are the catalogue's."""
