"""Nothing phones home: telemetry of every library is off unless the user turned it on."""

from __future__ import annotations

import os

# MLflow compares DO_NOT_TRACK with the word "true"; with "1" it still looks up its host.
SETTINGS: dict[str, str] = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
# Less talk on the terminal; a user's own value stands.
QUIETER: dict[str, str] = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def apply() -> None:
    """Set the environment variables that turn telemetry off, for this process and its children.

    Call it before importing MLflow, Prefect, DVC or transformers. Whether models may be fetched (``HF_HUB_OFFLINE``) is
    left to the user.
    """
    for name, value in SETTINGS.items():
        if name == "DO_NOT_TRACK" or name not in os.environ:
            os.environ[name] = value
    for name, value in QUIETER.items():
        os.environ.setdefault(name, value)
