"""`python -m onefold`, for torchrun."""

from onefold.cli import main

main()
