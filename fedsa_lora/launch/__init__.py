"""From a command to processes: plan, Flower, SuperLink, resumption."""
