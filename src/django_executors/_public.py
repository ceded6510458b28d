"""The public names, imported together when the first of them is accessed."""

from .exceptions import ConnectionLeakError as ConnectionLeakError
from .exceptions import ConnectionLimitTimeout as ConnectionLimitTimeout
from .exceptions import DeadlockError as DeadlockError
from .exceptions import ExecutorError as ExecutorError
from .exceptions import QueueFull as QueueFull
from .execution.immediate import ImmediateExecutor as ImmediateExecutor
from .execution.process import ProcessPoolExecutor as ProcessPoolExecutor
from .execution.stats import ExecutorStats as ExecutorStats
from .execution.thread import ThreadPoolExecutor as ThreadPoolExecutor
from .lifecycle.listing import ConnectionInfo as ConnectionInfo
from .lifecycle.listing import all_connections as all_connections
from .lifecycle.scope import connection_scope as connection_scope
from .lifecycle.scope import release_connections as release_connections
from .registry import executors as executors
