"""Pages, tables and figures of a run, for people."""
