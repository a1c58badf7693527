"""Reading the JSON files that other stages wrote."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_json"]


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is truncated or not JSON; the message names it.
    """
    text = path.read_bytes()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; run its stage again") from error
