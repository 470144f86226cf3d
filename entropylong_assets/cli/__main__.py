"""`python -m entropylong_assets.cli`, the same as the command `entropylong`."""

from entropylong_assets.cli.main import app

app()
