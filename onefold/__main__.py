"""`python -m onefold`, for torchrun."""

from onefold.cli.main import main

main()
