"""A plug-in of fedsa-lora; docs/extending.md explains each file and the command that runs all of them."""
