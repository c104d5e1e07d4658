"""The one place that imports MLflow, inside a function. Its global state (current URI, active run) is left alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import InputError
from store.tracking import ARTIFACTS, database_folder

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def mlflow_client(uri: str) -> Iterator[Any]:
    """A quiet client of its own; whatever MLflow throws becomes an InputError."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if before[name] is None})
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            "the build could not be logged to MLflow",
            where=uri,
            got=f"{type(error).__name__}: {error}",
            fix="the build is complete in the store; run the same recipe again to log it",
        ) from error
    finally:
        logger.setLevel(level)
        for name in (name for name, value in before.items() if value is None):
            os.environ.pop(name, None)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment's id. Artifacts live beside a local file (MLflow's own default is the current folder)."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = database_folder(uri)
        return str(client.create_experiment(name, artifact_location=folder and (folder / ARTIFACTS).as_uri()))
    return str(found.experiment_id)
