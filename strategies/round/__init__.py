"""One round of the server: who takes part, what is sent, what is let in."""
