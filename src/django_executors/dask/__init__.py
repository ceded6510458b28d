"""An executor on a Dask cluster. It needs the extra `dask`."""

try:
    from .executor import DaskExecutor
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"distributed", "cloudpickle"}:
        raise
    raise ImportError(
        'DaskExecutor needs Dask: python -m pip install "django-executors[dask]"', name=error.name
    ) from error

__all__ = ["DaskExecutor"]
