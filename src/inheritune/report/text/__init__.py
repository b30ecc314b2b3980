"""Records to words: the verdict, findings, tables and the format of numbers."""
