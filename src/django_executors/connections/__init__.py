"""One unit of work and what it holds: the only part of the package that touches django.db.

Importing it puts the hooks in place.
"""

from . import caches as caches
from . import fork as fork
from . import hook as hook
