"""The real pipeline and scheduler in virtual time, on workers that only take as long as a device model says.

May import: values, core, engine, theory.
"""
