"""Engines for the server's child process in tests: scripted ones, with every fault that can be asked for by a prompt."""
