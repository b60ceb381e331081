"""`python -m fastssl` is the `fastssl` command."""

from fastssl.cli import main

main()
