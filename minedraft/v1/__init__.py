"""Generated from protos/minedraft/v1 by scripts/protos; never edited by hand."""
