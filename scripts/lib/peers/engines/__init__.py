"""One file for each engine, and what they share: an environment, an HTTP client, cores."""
