"""What each mode gives, from the times of a draft and a verify: formulas, what the paper proves, and a fit. Pure.

May import: values.
"""
