"""What is shown of a running service.

May import: values, settings, core, engine.
"""
