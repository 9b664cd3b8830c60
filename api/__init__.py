"""The outer surface: HTTP routes, page, command line."""
