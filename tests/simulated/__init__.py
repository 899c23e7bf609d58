"""A pipeline in virtual time, on workers that take the time of a cost curve."""
