"""A word of `forbid` that is no role and can be no tensor's name, a store and folders that are of no use: all
are refused before the node connects."""

from pathlib import Path

from case import fedsa, said

Path("file").write_text("no folder")


def node(config: str) -> str:
    """What a node with this config says when it is refused; the port has no SuperLink."""
    words = ("--superlink", "127.0.0.1:1", "--insecure", "--max-retries", "1", "--max-wait-time", "2")
    done = fedsa("node", *words, "--node-config", config)
    assert done.returncode not in (0, None), f"{config}: the node was started"
    told = said(done)
    assert "ConfigError" in told, f"{config}: {told}"
    return told


for word, meant in (("b", "B"), ("heads", "head"), ("B,heads", "head"), ("Base", "base")):
    told = node(f'client-id="north" store="store" forbid="{word}"')
    assert f"did you mean '{meant}'?" in told, told

told = node('client-id="north" store="store" forbid="B", "head"')
assert "and nothing else" in told, told

told = node('client-id="../north" store="file" paths="none::/" forbid="classifier"')
for fault in (
    "client id '../north'",
    "is not a folder",
    "paths: 'none' is not an absolute path",
    "'classifier'",
):
    assert fault in told, f"{fault!r} is not in {told}"
