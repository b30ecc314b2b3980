"""The types of everything that a command writes and a report, a table or a later command reads.

`base` has what they share and `read_record`, the one reader. A room writes its own records and reads those of others.
"""
