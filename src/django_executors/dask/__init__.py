"""An executor on a Dask cluster. It needs the extra: `pip install django-executors[dask]`."""

from .executor import DaskExecutor

__all__ = ["DaskExecutor"]
