"""The public names, imported together when the first of them is accessed."""

from .base import ExecutorStats as ExecutorStats
from .base import all_executors as all_executors
from .connections.ledger import ConnectionInfo as ConnectionInfo
from .connections.ledger import all_connections as all_connections
from .connections.scope import connection_scope as connection_scope
from .connections.scope import release_connections as release_connections
from .exceptions import ConnectionLeakError as ConnectionLeakError
from .exceptions import ConnectionLimitTimeout as ConnectionLimitTimeout
from .exceptions import DeadlockError as DeadlockError
from .exceptions import ExecutorError as ExecutorError
from .exceptions import QueueFull as QueueFull
from .immediate import ImmediateExecutor as ImmediateExecutor
from .process import ProcessPoolExecutor as ProcessPoolExecutor
from .registry import executors as executors
from .thread import ThreadPoolExecutor as ThreadPoolExecutor
