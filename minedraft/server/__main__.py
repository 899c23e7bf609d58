"""`python -m minedraft.server`: the scheduler process, as `minedraft-scheduler`."""

from __future__ import annotations

from minedraft.server.command import main

if __name__ == "__main__":
    main()
