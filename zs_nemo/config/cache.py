"""Where everything lives that can be built again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $ZS_NEMO_CACHE, or ~/.cache/zs_nemo."""
    return Path(os.environ.get("ZS_NEMO_CACHE") or Path.home() / ".cache" / "zs_nemo").expanduser()
