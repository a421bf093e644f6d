"""Plans of who shares what, and in which group."""
