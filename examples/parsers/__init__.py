"""Command lines of the examples. They load no torch: `--help` is shown at once."""
