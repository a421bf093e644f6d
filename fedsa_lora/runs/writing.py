"""Write a file whole or not at all."""

import os
import tempfile
from pathlib import Path

from fedsa_lora.errors import RunError


def write_whole(path: Path, content: bytes) -> Path:
    """Replace `path` by `content` in one step: a reader sees the old file or the new one, never a part."""
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o644)  # temporary files are made unreadable for others; a report is to be shared
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror}; check space and permissions") from error
    return path
