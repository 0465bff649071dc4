"""The command line: `main` finds the command, one module per command does the talking, the layers below the work."""
