"""The command line: a light entry point, the Lightning one behind it, and the reproduction of claims."""
