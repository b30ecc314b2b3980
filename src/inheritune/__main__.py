"""`python -m inheritune`, which is also what torchrun starts."""

from inheritune.cli.main import main

main()
