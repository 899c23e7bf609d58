"""Views of a running service: its status and its timeline.

May import: values, places, settings, core, engine.
"""
