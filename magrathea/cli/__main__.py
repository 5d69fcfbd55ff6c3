"""`python -m magrathea.cli`, where the package is not installed."""

from .main import main

main()
