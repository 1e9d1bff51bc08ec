"""`python -m regard.cli`: the same commands where the script is not on the path."""

from regard.cli import main

main()
