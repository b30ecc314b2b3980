"""Records to the rows that charts and tables draw."""
