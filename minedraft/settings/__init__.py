"""The settings of the service and its workers: names, defaults, checks, command line flags.

May import: values, places, security.
"""
