"""Doors for people: Python, the command line, tables of any size, the interface of the official code."""
