"""Whether a worker lives: judged from what it says of itself and from the time that passes.

May import: values, core.
"""
