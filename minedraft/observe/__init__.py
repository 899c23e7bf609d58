"""Views of a running service: its status and its timeline.

May import: values, settings, core, engine.
"""
