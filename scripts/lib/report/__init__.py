"""`scripts/report`: every measured number on a page is written from a result file, and checked against it."""
