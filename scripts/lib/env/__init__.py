"""The versions that this was tested with, of packages that environments are made of."""
