"""The command line; `jaxunlearn.cli.main.main` is its entry point."""
