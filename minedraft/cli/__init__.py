"""The commands: `minedraft` for users of a running service, `minedraft-launch` for its operator."""
