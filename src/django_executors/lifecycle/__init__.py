"""One unit of work and what it holds: the only part of the package that touches django.db.

Importing it puts the hooks in place.
"""

from . import caching as caching
from . import forking as forking
from . import hook as hook
