"""`python -m minedraft.server`: the scheduler process."""

from __future__ import annotations

from minedraft.server.composition import main

if __name__ == "__main__":
    main()
