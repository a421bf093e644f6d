"""Rules that make new common values of clients' updates."""
