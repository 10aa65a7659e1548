"""`python -m realrl` is the command line."""

from realrl.cli import main

main()
